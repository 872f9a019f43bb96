"""ami-tty itself, by QEMU alone: every bus that its disks can be on, and devices that come and go while it runs."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Machine, eventually, on, read

pytestmark = on("flat")

# QEMU's own network has no metadata service: this one is started for each connection, with the request as its input.
METADATA = """\
#!/bin/sh
read -r _ path _
while read -r line && [ "$line" != "$(printf '\\r')" ]; do :; done
folder={folder}
[ -f "$folder$path" ] || {{ printf 'HTTP/1.0 404 Not Found\\r\\n\\r\\n'; exit; }}
printf 'HTTP/1.0 200 OK\\r\\nContent-Length: %s\\r\\n\\r\\n' "$(wc -c <"$folder$path")"
cat "$folder$path"
"""
BUSES = {
    "virtio-blk": ["q35", "virtio-blk-pci,drive=root"],
    "virtio-scsi": ["q35", "virtio-scsi-pci", "scsi-hd,drive=root"],
    "lsilogic": ["pc", "lsi53c895a", "scsi-hd,drive=root"],
    "sata": ["q35", "ide-hd,drive=root"],
    "ide": ["pc", "ide-hd,drive=root"],
    "usb": ["q35", "qemu-xhci", "usb-storage,drive=root"],
}
DRIVERS = {"lsilogic": "sym53c8xx", "sata": "ahci", "cdrom on SATA": "ahci", "usb": "usb_storage"}  # not in every kernel
DRIVES = {  # the machine, the config drive's devices
    "cdrom on virtio-scsi": ["q35", "virtio-scsi-pci", "scsi-cd,drive=config"],
    "cdrom on SATA": ["q35", "ide-cd,drive=config"],
    "cdrom on IDE": ["pc", "ide-cd,drive=config"],
}
ANY = "0.0.0.0"  # noqa: S104
NETWORK = {
    "links": [{"id": "tap0", "type": "ovs", "mtu": 1442, "ethernet_mac_address": "52:54:00:12:34:56"}],
    "networks": [
        {
            "id": "network0",
            "type": "ipv4",
            "link": "tap0",
            "ip_address": "10.9.8.7",
            "netmask": "255.255.255.0",
            "routes": [{"network": ANY, "netmask": ANY, "gateway": "10.9.8.1"}],
        }
    ],
}


class Guest:
    """A QEMU with the parts of the image that a cloud has built, and with a metadata service or none."""

    def __init__(self, folder: Path, cloud: Machine) -> None:
        self.folder, self.images, self.key = folder, cloud.folder / "nova/images", cloud.key
        self.serial, self.qmp = folder / "serial", folder / "qmp"
        self.qemu: subprocess.Popen[bytes] | None = None
        self.metadata: dict[str, str] = {
            "meta-data/hostname": "guest.novalocal",
            "meta-data/instance-id": "i-00000001",
            "meta-data/public-keys/0/openssh-key": read(f"{cloud.key}.pub"),
        }

    def start(self, board: str, *devices: str, drives: dict[str, Path] | None = None, dhcp: bool = True) -> None:
        """Boot it as nova does."""
        disk, service = self.folder / "root.img", self.folder / "metadata.sh"
        if not disk.exists():
            shutil.copyfile(self.images / "root.img", disk)
            subprocess.run(["truncate", "--size", "200M", disk], check=True)
        service.write_text(METADATA.format(folder=self.folder / "served"))
        service.chmod(0o755)
        for name, text in self.metadata.items():
            (path := self.folder / "served/latest" / name).parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        wire = f"user,id=wire,net=169.254.0.0/16,hostfwd=tcp:127.0.0.1:{self.port}-:22"
        if self.metadata:
            wire += f",guestfwd=tcp:169.254.169.254:80-cmd:{service}"
        options = f"-accel tcg -machine {board} -m 256 -display none -nodefaults -serial file:{self.serial}"
        options += f" -qmp unix:{self.qmp},server=on,wait=off -kernel {self.images}/vmlinuz -initrd {self.images}/initrd"
        options += f" -netdev {wire if dhcp else 'socket,id=wire,listen=127.0.0.1:0'} -device virtio-rng-pci"
        options += " -device virtio-net-pci,netdev=wire,mac=52:54:00:12:34:56"
        for name, path in {"root": disk, **(drives or {})}.items():
            options += f" -drive if=none,id={name},file={path},format=raw"
        if board == "q35":
            options += " -device pcie-root-port,id=first,slot=1 -device pcie-root-port,id=second,slot=2"
        options += "".join(f" -device {device}" for device in devices)
        line = "root=LABEL=ami-tty console=ttyS0 quiet no_timer_check mitigations=off"
        self.qemu = subprocess.Popen(["qemu-system-x86_64", *shlex.split(options), "-append", line], stdin=subprocess.DEVNULL)

    def console(self) -> str:
        """What the serial console has shown."""
        return self.serial.read_text(errors="replace") if self.serial.exists() else ""

    def says(self, what: str, seconds: float = 60) -> None:
        """Wait until the console shows it."""
        try:
            eventually(f"{what} on the console", lambda: what in self.console(), seconds)
        except BaseException:
            print(self.console())
            raise

    def ssh(self, line: str, user: str = "root") -> str:
        """A line in the guest."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
        command = ["ssh", "-i", str(self.key), *shlex.split(options), "-p", str(self.port), f"{user}@127.0.0.1", line]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:  # an error that `eventually` takes for "not yet"
            raise OSError(f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def monitor(self, command: str, **arguments: Any) -> None:
        """A command of QMP's."""
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(self.qmp))
            with link.makefile("rw") as stream:
                stream.readline()
                for each in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    stream.write(json.dumps(each) + "\n")
                    stream.flush()
                    while "event" in (answer := json.loads(stream.readline())):
                        pass
                    assert "return" in answer, answer

    def stop(self) -> None:
        """Pull its plug."""
        if self.qemu:
            self.qemu.kill()
            self.qemu.wait()


@pytest.fixture
def guest(cloud: Machine, tmp_path: Path) -> Iterator[Guest]:
    """A guest that is not started yet."""
    one = Guest(tmp_path, cloud)
    yield one
    one.stop()


def skip_without_driver(guest: Guest, kind: str) -> None:
    """The kernels for clouds, which are small, have not every driver."""
    if kind in DRIVERS and f"/{DRIVERS[kind]}.ko".encode() not in (guest.images / "initrd").read_bytes():
        pytest.skip(f"this release's kernel has no {DRIVERS[kind]}")


@pytest.mark.parametrize("bus", BUSES)
def test_it_mounts_its_root_on_any_bus(guest: Guest, bus: str) -> None:
    skip_without_driver(guest, bus)
    board, *devices = BUSES[bus]
    guest.start(board, *devices)
    guest.says("ami-tty: ssh ready")
    disk, blocks = guest.ssh("lsblk -n -o NAME -d | grep '[sv]da$'; df -P -k / | awk 'NR == 2 { print $2 }'").split()
    assert disk == ("vda" if devices[-1].startswith("virtio-blk") else "sda")
    assert int(blocks) > 150 * 1024, "its file system has grown to its disk"


def test_the_first_of_two_disks_of_the_image_is_its_root(guest: Guest, tmp_path: Path) -> None:
    shutil.copyfile(guest.images / "root.img", tmp_path / "other.img")
    guest.start("q35", "virtio-blk-pci,drive=root", "virtio-blk-pci,drive=other", drives={"other": tmp_path / "other.img"})
    guest.says("ami-tty: ssh ready")
    assert guest.ssh("grep -o '^/dev/vd. / ' /proc/mounts") == "/dev/vda /"
    assert guest.ssh("lsblk -n -l -o NAME,LABEL,FSTYPE", "cirros").split() == ["vda", "ami-tty", "ext4", "vdb", "ami-tty", "ext4"]


def config_drive(guest: Guest) -> Path:
    """A config drive as nova makes it."""
    folder, key = guest.folder, guest.metadata["meta-data/public-keys/0/openssh-key"]
    image = folder / "config.img"
    (latest := folder / "drive/openstack/latest").mkdir(parents=True)
    data = {"uuid": "11111111", "hostname": "driven.novalocal", "public_keys": {"mine": f"{key}\n"}}
    (latest / "meta_data.json").write_text(json.dumps(data))
    (latest / "network_data.json").write_text(json.dumps(NETWORK))
    (latest / "user_data").write_text("#!/bin/sh\necho user-data ran as $(whoami)\n")
    make = ["genisoimage", "-quiet", "-o", image, "-ldots", "-allow-lowercase", "-allow-multidot", "-l", "-J", "-r"]
    subprocess.run([*make, "-V", "config-2", folder / "drive"], check=True)
    return image


@pytest.mark.parametrize("kind", DRIVES)
def test_it_reads_a_config_drive_without_dhcp(guest: Guest, kind: str) -> None:
    """At once: it does not wait for an answer to DHCP, which it goes on asking for."""
    skip_without_driver(guest, kind)
    board, *devices = DRIVES[kind]
    drive = {"config": config_drive(guest)}
    guest.start(board, "virtio-blk-pci,drive=root", *devices, drives=drive, dhcp=False)
    guest.says("ami-tty: user-data: exit code 0")
    said = [line.partition("ami-tty: ")[2] for line in guest.console().splitlines() if "ami-tty: " in line]
    assert said[:3] == ["address 10.9.8.7/255.255.255.0", "config drive ok", "ssh ready"]
    assert "user-data ran as root" in guest.console()


@pytest.fixture(scope="module")
def running(cloud: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest that runs, with user-data."""
    one = Guest(tmp_path_factory.mktemp("guest"), cloud)
    one.metadata["user-data"] = "#!/bin/sh\necho ran >>/var/ran\n"
    one.start("q35", "virtio-blk-pci,drive=root")
    one.says("ami-tty: ssh ready")
    yield one
    one.stop()


PROGRAMS: dict[str, Callable[[str], bool]] = {  # what clients run in a guest, as the user cirros: is that the answer?
    "lsblk -lb --nodeps": lambda said: "TYPE" in said and " disk" in said,
    "lsblk --nodeps --noheadings --output NAME": lambda said: "vda" in said.split(),
    "sudo lsblk --fs --ascii": lambda said: "ami-tty" in said,
    "blkid -L ami-tty -o device": "/dev/vda".__eq__,
    "sudo -n whoami": "root".__eq__,
    "sudo -i pwd": "/root".__eq__,
    "sudo sh -c 'echo done >/root/note; sync'; sudo cat /root/note": "done".__eq__,
    "truncate -s 8M /tmp/disk; sudo mkfs -t ext4 -q /tmp/disk; blkid -o value -s TYPE /tmp/disk": "ext4".__eq__,
    "truncate -s 8M /tmp/fat; mkfs -t vfat /tmp/fat >/dev/null; blkid -o value -s TYPE /tmp/fat": "vfat".__eq__,
    "curl -s http://169.254.169.254/latest/meta-data/hostname": "guest.novalocal".__eq__,
    "ping -c1 -w1 -s56 127.0.0.1": lambda said: " 0% packet loss" in said,
    "hostname": "guest".__eq__,
    "ip -o link | awk '/52:54:00:12:34:56/ {print $2}'": "eth0:".__eq__,
    "sudo /bin/kill -USR1 $(cat /var/run/udhcpc.eth0.pid) && echo renewed": "renewed".__eq__,
    "sudo ip link add link eth0 name eth0.5 type vlan id 5 && ip -o link show eth0.5": lambda said: "eth0.5@eth0" in said,
}


@pytest.mark.parametrize("line", PROGRAMS)
def test_it_has_what_clients_run_in_a_guest(running: Guest, line: str) -> None:
    said = running.ssh(f"set -eu -o pipefail; PATH=$PATH:/sbin:/usr/sbin; {line}", "cirros")
    assert PROGRAMS[line](said), said


def test_user_data_runs_once(running: Guest) -> None:
    eventually("user-data", lambda: running.ssh("cat /var/ran") == "ran", 20)
    running.ssh("reboot -f >/dev/null 2>&1 &")
    eventually("the second boot", lambda: running.console().count("ami-tty: ssh ready") == 2, 60)
    eventually("the end of its start", lambda: running.ssh("ls /run/user-data"), 20)
    assert running.ssh("cat /var/ran") == "ran"


def test_an_interface_that_comes_gets_an_address_and_one_that_goes_leaves_nothing(running: Guest) -> None:
    running.monitor("netdev_add", type="user", id="more", net="10.77.0.0/24")
    running.monitor("device_add", driver="virtio-net-pci", netdev="more", id="nic", bus="first")
    eventually("its address", lambda: " 10.77.0.15/24 " in running.ssh("ip -4 addr show dev eth1"), 20)
    assert " dev eth0 " in running.ssh("ip route get 192.0.2.1") + " ", "the first interface's route counts"
    pid = running.ssh("cat /var/run/udhcpc.eth1.pid")
    running.monitor("device_del", id="nic")
    eventually("its end", lambda: running.ssh(f"ls /sys/class/net /proc/{pid} 2>&1 || true").count("No such file") == 1, 20)
    assert "eth1" not in running.ssh("ls /sys/class/net")


def test_a_disk_that_comes_is_seen(running: Guest) -> None:
    disk = running.folder / "more.img"
    subprocess.run(["truncate", "--size", "64M", disk], check=True)
    running.monitor("blockdev-add", driver="raw", **{"node-name": "more"}, file={"driver": "file", "filename": str(disk)})
    running.monitor("device_add", driver="virtio-blk-pci", drive="more", id="disk", bus="second")
    eventually("the disk", lambda: "vdb" in running.ssh("lsblk -n -d -o NAME", "cirros").split(), 20)
    running.ssh("sudo mkfs -t vfat /dev/vdb >/dev/null && sudo mkdir -p /mnt/vdb && sudo mount /dev/vdb /mnt/vdb", "cirros")
    assert running.ssh("grep -o 'vdb /mnt/vdb vfat' /proc/mounts") == "vdb /mnt/vdb vfat"
    running.ssh("umount /mnt/vdb")


def test_its_power_button_works(running: Guest) -> None:
    running.monitor("system_powerdown")
    eventually("its end", lambda: running.qemu and running.qemu.poll() == 0, 30)
