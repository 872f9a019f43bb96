"""What the machine tests use: nova.py as its users call it, the cloud as they see it, and this machine, looked at."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import re
import shlex
import shutil
import socket
import string
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

NOVA_PY = Path(__file__).resolve().parents[2] / "nova.py"
IPV6_SWITCHES = ("forwarding", "accept_ra", "disable_ipv6")
# the cloud's users, whom this machine does not know: nova-py, libvirt-qemu, and the group nova-py-root
USER, GUEST_USER, PRIVSEP_GROUP = 28272, 28273, 28274
# what the tests look with: program, Debian's package
TOOLS = {"ip": "iproute2", "nft": "nftables", "ping": "iputils-ping", "ssh": "openssh-client", "screen": "screen", "git": "git"}
TOOLS |= {"qemu-img": "qemu-utils", "iptables-legacy": "iptables", "ps": "procps"}
PORTS = {3333, 5000, 6080, 6083, 8773, 8774, 8775, 8776, 8778, 9292, 9696, 33890, 34369, 35672, 35673, 36200}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this folder is a machine test; those that share a cloud come last, one cloud after the other."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.machine)
    items.sort(key=lambda item: (getattr(item, "callspec", None) and item.callspec.params.get("cloud")) or "")


def ask(*command: str) -> str:
    """What a command says; nothing where it is not installed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def control_groups() -> list[str]:
    """The control groups of containers, of either version; this machine's may be mounted elsewhere, or not at all."""
    named = (line.rpartition("/machine")[2] for path in Path("/proc").glob("[0-9]*/cgroup") for line in read(path).splitlines())
    left = [str(path) for path in Path("/sys/fs/cgroup").glob("**/machine")]
    return sorted({*(name for name in named if ".libvirt-lxc" in name), *left})


def read(path: Path | str) -> str:
    """A small file's text, stripped; nothing where it is not there (any more)."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def eventually(what: str, seen: Callable[[], Any], seconds: float = 60) -> Any:
    """What `seen` returns once it is true; the last thing it said otherwise."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if last := seen():
                return last
        except (OSError, subprocess.SubprocessError) as error:
            last = error
        time.sleep(0.3)
    pytest.fail(f"{what}: not within {seconds} s; last: {last}")


class Machine:
    """nova.py in a folder of its own, which only root can enter, as in a root's home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"

    def nova(self, *words: str, ok: int = 0, env: dict[str, str] | None = None) -> str:
        """Call nova.py VERB; what it said; the exit code has to be `ok`."""
        command = ["python3", str(NOVA_PY), *words]
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == ok, f"nova.py {' '.join(words)}: exit code {done.returncode}\n{said}"
        return said

    def shell(self, line: str) -> str:
        """A line in a shell of the user's, with novarc sourced."""
        line = f". nova/novarc && {line}"
        done = subprocess.run(["bash", "-c", line], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def openstack(self, words: str) -> Any:
        """An openstack command; its JSON."""
        return json.loads(self.shell(f"openstack {words} -f json"))

    def host_ip(self) -> str:
        """The address of the APIs, as novarc says it."""
        return self.shell("echo $OS_AUTH_URL").removeprefix("http://").partition(":")[0]

    def default_interface(self) -> str:
        """The interface of this machine's default route."""
        return ask("ip", "route", "show", "default").split(" dev ")[1].split()[0]

    def floating(self, server: str) -> str:
        """A floating address of its own for the server."""
        address = self.openstack("floating ip create public")["floating_ip_address"]
        self.shell(f"openstack server add floating ip {server} {address}")
        return str(address)

    def ssh(self, address: str, line: str) -> str:
        """A line in the instance as root, by ssh with the key."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
        command = ["ssh", "-i", str(self.key), *shlex.split(options), "-o", "ConnectTimeout=5", f"root@{address}", line]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=60)
        return done.stdout.strip()

    def boot(self, name: str, *more: str) -> str:
        """An instance with the key, on `private` where `more` names no network: its fixed IPv4 address."""
        where = " ".join(more or ("--network private",))
        self.shell(f"openstack server create --image ami-tty --flavor m1.tiny --key-name mine {where} --wait {name}")
        ((*fixed,),) = self.openstack(f"server show {name}")["addresses"].values()
        return next(str(address) for address in fixed if ":" not in address)

    def boot_and_reach(self, name: str) -> str:
        """An instance on a network that this machine is on: its fixed address, which answers ssh without a floating one."""
        address = self.boot(name)
        eventually(f"ssh to {name}", lambda: self.ssh(address, "hostname") == name)
        return address

    def reaches(self, address: str, other: str) -> bool:
        """Does the instance at `address` get three answers of three to its pings of `other`?"""
        return " 0% packet loss" in self.ssh(address, f"ping -c 3 -W 2 {other} || true")

    def entered(self, *words: str) -> list[str]:
        """A command that is to run where the cloud's processes do, in its Debian."""
        pid = (self.folder / "nova/state/run/keystone.pid").read_text().strip()
        return ["nsenter", "--mount", "--root", f"--target={pid}", "--wdns=/", *words]

    def processes(self) -> list[str]:
        """The cloud's processes: those that have its folder mounted at /run/nova.py."""
        found = []
        for process in psutil.process_iter():
            try:
                if " /run/nova.py " in Path(f"/proc/{process.pid}/mountinfo").read_text():
                    found.append(" ".join(process.cmdline()))
            except (OSError, psutil.Error):
                continue
        return found

    def ports(self) -> set[int]:
        """The cloud's ports that somebody listens on."""
        listening = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
        return {c.laddr.port for c in listening} & PORTS

    def traces(self) -> dict[str, Any]:
        """What a cloud could leave on a machine."""
        names = sorted(os.listdir("/sys/class/net"))
        tables = ask("nft", "list", "tables")
        return {
            "interfaces": names,
            "namespaces": sorted(os.listdir("/run/netns")) if Path("/run/netns").exists() else [],
            "mounts": sorted(m for m in Path("/proc/self/mountinfo").read_text().splitlines() if "nova" in m),
            "nova_py table": "nova_py" in tables,
            "ip_forward": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
            "merging": {path.name: path.read_text() for path in sorted(Path("/sys/kernel/mm/ksm").glob("[pr]*n"))},
            "domains": sorted(p.name for p in (self.folder / "nova/state/root/etc/libvirt").glob("*/instance-*.xml")),
            "guests": [line for line in self.processes() if "qemu-system" in line or "libvirt_lxc" in line],
            "containers' control groups": control_groups(),
            "disks": sorted(str(path) for path in (self.folder / "disks").rglob("*")),
            "addresses": re.findall(r"inet6? (\S+)", ask("ip", "address")),
            "up and promiscuous": {n: read(f"/sys/class/net/{n}/flags") for n in names},
            "routes": sorted([*ask("ip", "route").splitlines(), *ask("ip", "-6", "route").splitlines()]),
            "IPv6": {str(p): read(p) for name in IPV6_SWITCHES for p in Path("/proc/sys/net/ipv6/conf").glob(f"*/{name}")},
            "loop devices": self.loop_devices(),
            "screen's folder": oct(Path("/run/screen").stat().st_mode) if Path("/run/screen").exists() else "",
        }

    def loop_devices(self) -> list[str]:
        """The loop devices that are volumes' disk."""
        disk = self.folder / "nova/state/volumes/disk"
        inode = str(disk.stat().st_ino) if disk.exists() else ""
        return [each for each in ask("losetup", "--list", "--noheadings", "--output", "BACK-INO").split() if each == inode]


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """This machine; whatever happens, its cloud is taken down at the end, and its folder removed."""
    if os.geteuid() != 0:
        pytest.fail("machine tests need root: sudo tests/run")
    if missing := [package for program, package in TOOLS.items() if not shutil.which(program)]:
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing], check=True)
    for left in Path.home().glob("nova-test-*"):  # by tests that were cut off
        if (left / "nova/state").exists():
            Machine(left).nova("scrub")
        shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix="nova-test-", dir=Path.home()))
    it = Machine(folder)
    yield it
    if (folder / "nova/state").exists():
        it.nova("scrub")
    shutil.rmtree(folder)


# ---- Wires: a spare interface, and one with an address of its own; what is at their far ends is a world of its own ----

FAR = ("ip", "netns", "exec", "nova-far")
WIRES = """
ip netns add nova-far
ip link add nova-spare type veth peer name far0 netns nova-far
ip link add nova-host type veth peer name far1 netns nova-far
ip address add 198.51.100.10/24 dev nova-host
ip address add 2001:db8::10/64 dev nova-host nodad
ip link set nova-host up
ip -n nova-far link set lo up
ip -n nova-far link set far0 up
ip -n nova-far link set far1 up
ip -n nova-far address add 198.51.100.20/24 dev far1
ip -n nova-far address add 2001:db8::20/64 dev far1 nodad
"""


@pytest.fixture(scope="session")
def wires(machine: Machine) -> Iterator[None]:
    """nova-spare and nova-host are interfaces of this machine, far0 and far1 their far ends in the namespace nova-far."""
    if Path("/run/netns/nova-far").exists():  # left by tests that were cut off; its interfaces go with it
        subprocess.run(["ip", "netns", "delete", "nova-far"], check=True)
        eventually("their end", lambda: not {"nova-spare", "nova-host"} & {*os.listdir("/sys/class/net")})
    for line in WIRES.split("\n"):
        subprocess.run(line.split() or ["true"], check=True)
    yield
    for line in ("ip link delete nova-spare", "ip link delete nova-host", "ip netns delete nova-far"):
        subprocess.run(line.split(), check=True)


def far(*command: str) -> str:
    """What a command says at the far ends."""
    return subprocess.run([*FAR, *command], capture_output=True, text=True, check=True, timeout=60).stdout


# The clouds that the tests of variables share, one after the other; a test module says which: pytestmark = on("vlan").
CLOUDS: dict[str, dict[str, str]] = {
    "vlan": {"NET_MAN": "VlanManager", "FLAT_INTERFACE": "nova-spare", "FIXED_RANGE": "10.11.0.0/24", "CONSOLES": "1"}
    | {"VOLUMES_SIZE": "10", "USE_SWIFT": "1", "USE_LDAP": "1", "USE_EC2": "1"},
    "flat-dhcp": {"NET_MAN": "FlatDHCPManager", "FLAT_INTERFACE": "nova-spare", "USE_IPV6": "1", "HOST_IP": "198.51.100.10"}
    | {"FIXED_RANGE_V6": "fdcc:1:2::/48"}
    | {"SCREEN_NAME": "mine", "SCREEN_STATUS": "0"},
    "flat": {"NET_MAN": "FlatManager", "INTERFACE": "nova-host", "FLOATING_RANGE": "10.66.0.0/28"}
    | {"USE_MYSQL": "0", "VOLUMES_SIZE": "10"}
    | {"INSTANCES_PATH": "{folder}/disks/instances", "LOCK_PATH": "{folder}/disks/locks"}
    | {"IMAGE": "http://127.0.0.1:{port}/tty-of-mine.qcow2#sha256={sha256}"}
    | {"USE_LDAP": "1", "LDAP_URL": "ldap://127.0.0.1:{ldap_port}", "LDAP_TREE": "dc=test,dc=sh"}
    | {"LDAP_PASSWORD": "the-managers-own", "DEMO_PASSWORD": "the-demos-own"},
    "lxc": {"LIBVIRT_TYPE": "lxc"},
    "debian": {"IMAGE": "debian", "VOLUMES_SIZE": "5", "USE_IPV6": "1"},
}


def on(name: str) -> pytest.MarkDecorator:
    """For a module's pytestmark: its tests take the fixture `cloud` and run on that cloud; pytest groups them by it."""
    return pytest.mark.parametrize("cloud", [name], indirect=True, scope="session")


@pytest.fixture(scope="session")
def cloud(machine: Machine, wires: None, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A cloud made with one row of CLOUDS, and the keypair `mine` in it; taken down to nothing when the next one comes."""
    before, chosen = machine.traces(), CLOUDS[request.param]
    if "{" in chosen.get("IMAGE", ""):
        places = {"folder": str(machine.folder), **request.getfixturevalue("served_image")}
        places |= request.getfixturevalue("directory_389")
        chosen = {name: value.format(**places) for name, value in chosen.items()}
    machine.nova("run_detached", env=chosen)
    if not machine.key.exists():
        machine.shell(f"ssh-keygen -q -t ed25519 -N '' -f {machine.key}")
    machine.shell(f"openstack keypair create --public-key {machine.key}.pub mine")
    yield machine
    for verb in ("terminate", "clean", "scrub"):
        machine.nova(verb)
    assert machine.traces() == before
    assert machine.processes() == [] and machine.ports() == set()


@pytest.fixture(scope="session")
def served_image(machine: Machine) -> Iterator[dict[str, Any]]:
    """tty-of-mine.qcow2, made by qemu-img from ami-tty's root disk, on a web server of this machine: its port and hash."""
    machine.nova("install")  # it brings qemu-img, and that root disk
    folder = machine.folder / "served"
    folder.mkdir()
    source, image = str(machine.folder / "nova/images/root.img"), folder / "tty-of-mine.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, str(image)], check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"port": server.server_port, "sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
        server.shutdown()


# ---- A directory that is nova.py's neighbour: 389-ds, which is another server than slapd, with the same tree in it ----

INSTANCE = """
[general]
config_version = 2
start = False
full_machine_name = localhost
strict_host_checking = False
[slapd]
instance_name = nova-test
port = {port}
secure_port = 0
self_sign_cert = False
root_dn = cn=admin,{tree}
root_password = {password}
[backend-userroot]
suffix = {tree}
"""

# Its programs take Debian's word for it that systemd is there; here it may not be.
WITHOUT_SYSTEMD = """
import runpy, sys
from lib389.paths import Paths
Paths.with_systemd = False
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def of_389(program: str, *words: str) -> None:
    """Call dscreate or dsctl."""
    subprocess.run(["/usr/bin/python3", "-c", WITHOUT_SYSTEMD, f"/usr/sbin/{program}", *words], check=True)


@pytest.fixture(scope="session")
def directory_389(machine: Machine) -> Iterator[dict[str, Any]]:
    """389-ds on loopback with what conf/tree.ldif.tmpl says in it: its port. Without systemd: started by hand, as its user."""
    chosen = CLOUDS["flat"]
    tree, password = chosen["LDAP_TREE"], chosen["LDAP_PASSWORD"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if not shutil.which("dscreate") or not shutil.which("ldapadd"):
        apt = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run([*apt, "update"], check=True)
        packages = ["389-ds-base", "ldap-utils"]
        subprocess.run(
            [*apt, "install", "-y", "--no-install-recommends", *packages], check=True, env=quiet, stdout=subprocess.DEVNULL
        )
    if Path("/etc/dirsrv/slapd-nova-test").exists():  # left by tests that were cut off
        of_389("dsctl", "nova-test", "remove", "--do-it")
    wanted = machine.folder / "389.inf"
    wanted.write_text(INSTANCE.format(port=port, tree=tree, password=password))
    if not Path("/run/lock").exists():  # dscreate would make it, and its server could not enter it
        Path("/run/lock").mkdir()
        Path("/run/lock").chmod(0o1777)
    of_389("dscreate", "from-file", str(wanted))
    settings = Path("/etc/dirsrv/slapd-nova-test/dse.ldif")
    settings.write_text(re.sub("^(nsslapd-port: .*)$", r"\1\nnsslapd-listenhost: 127.0.0.1", settings.read_text(), flags=re.M))
    pid = "/run/dirsrv/slapd-nova-test.pid"
    server = subprocess.Popen(["ns-slapd", "-D", str(settings.parent), "-i", pid, "-d", "0"], stderr=subprocess.DEVNULL)
    try:
        url = f"ldap://127.0.0.1:{port}"
        eventually("389-ds", lambda: ask("ldapsearch", "-x", "-H", url, "-b", "", "-s", "base", "vendorVersion"))
        manager = ["-x", "-H", url, "-D", f"cn=admin,{tree}", "-w", password]
        values = {"LDAP_TREE": tree, "LDAP_NAME": "test", "DEMO_PASSWORD": chosen["DEMO_PASSWORD"]}
        entries = string.Template((NOVA_PY.parent / "conf/tree.ldif.tmpl").read_text()).substitute(values)
        subprocess.run(["ldapadd", *manager], input=entries, text=True, check=True)
        yield {"ldap_port": port}
    finally:
        server.terminate()
        server.wait()
        of_389("dsctl", "nova-test", "remove", "--do-it")


def listener(address: str) -> socket.socket:
    """A TCP listener on this machine, which says hello to whoever connects."""
    server = socket.create_server((address, 0))
    server.settimeout(60)
    return server
