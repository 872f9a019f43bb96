# SPDX-License-Identifier: Apache-2.0
"""The life of volumes: made, attached, written and read, detached, snapshotted, restored, extended, booted from, deleted.

Attached or not, encrypted or not; backed up and reverted.
"""

import re
from pathlib import Path

import psutil
import pytest

from .conftest import CLOUDS, Machine, eventually, on

pytestmark = on("vlan")

SIZE = int(CLOUDS["vlan"]["VOLUMES_SIZE"])
MIB = 1 << 20


def becomes(cloud: Machine, kind: str, name: str, wanted: str) -> None:
    """Until a volume or a snapshot has this status; one that went wrong has not, and its window's log says why."""

    def seen() -> bool:
        status = cloud.openstack(f"{kind} show {name}")["status"]
        assert not status.startswith("error") or status == wanted, log(cloud)
        return bool(status == wanted)

    eventually(f"{kind} {name} is {wanted}", seen, 120)


def log(cloud: Machine) -> str:
    """What went wrong in the window volume."""
    lines = (cloud.folder / "nova/state/log/volume.log").read_text().splitlines()
    return "\n".join(line for line in lines if " ERROR " in line)[-4000:]


def attach(cloud: Machine, name: str, size: int) -> None:
    """The volume is the instance's second disk, and as large as it should be."""
    cloud.shell(f"openstack server add volume holder {name}")
    becomes(cloud, "volume", name, "in-use")
    eventually("the disk in the instance", lambda: sectors(cloud) == size * 1024 * 2048)


def detach(cloud: Machine, name: str) -> None:
    """The volume is free again, and the disk has left the instance."""
    cloud.shell(f"openstack server remove volume holder {name}")
    becomes(cloud, "volume", name, "available")
    eventually("the end of the disk in the instance", lambda: sectors(cloud) == 0)


def sectors(cloud: Machine) -> int:
    """How large the second disk is, as the guest's kernel sees it; 0 where there is none."""
    return int(inside(cloud, "cat /sys/block/vdb/size 2>/dev/null || echo 0"))


def inside(cloud: Machine, line: str) -> str:
    """A line in the instance that volumes are attached to."""
    return cloud.ssh((cloud.folder / "holder").read_text(), line)


def data(cloud: Machine) -> str:
    """The SHA-256 of the file on the second disk, read from the disk."""
    inside(cloud, "mount -t ext4 /dev/vdb /mnt")
    said = inside(cloud, "sha256sum /mnt/data; umount /mnt")
    return re.findall(r"^[0-9a-f]{64}", said)[0]


def files(cloud: Machine) -> dict[str, int]:
    """The volumes' files and the bytes that each of them may grow to."""
    return {path.name: path.stat().st_size for path in share(cloud).iterdir() if path.name.startswith("volume-")}


def share(cloud: Machine) -> Path:
    """Where they are, as the process that keeps them sees it."""
    keeper = next(
        process.pid
        for process in psutil.process_iter(["cmdline"])  # None of one that has ended
        if "bin/cinder-volume" in " ".join(process.info["cmdline"] or []) and ours(cloud, process.pid)
    )
    return Path(f"/proc/{keeper}/root/run/nova.py/state/volumes/local:/share")


def ours(cloud: Machine, pid: int) -> bool:
    """Is this a process of our cloud?"""
    return f"{cloud.folder}/nova /run/nova.py " in Path(f"/proc/{pid}/mountinfo").read_text()


def boot(cloud: Machine, words: str, name: str) -> str:
    """A new instance with our key; its floating address, once ssh answers."""
    cloud.shell(f"openstack server create {words} --flavor m1.tiny --network private --key-name mine --wait {name}")
    address = cloud.floating(name)
    eventually(f"ssh to {name}", lambda: cloud.ssh(address, "hostname") == name, 120)
    return address


def delete_server(cloud: Machine, name: str) -> None:
    cloud.shell(f"openstack server delete --wait {name}")


def snapshot(cloud: Machine, volume: str, name: str) -> None:
    """A snapshot of a volume in any state; --force of openstackclient 10.5 does nothing."""
    cloud.shell(f"openstack --os-volume-api-version 3.66 volume snapshot create --volume {volume} {name}")
    becomes(cloud, "volume snapshot", name, "available")


def delete(cloud: Machine, kind: str, *names: str) -> None:
    """One after the other, each until it is gone."""
    for name in names:
        cloud.shell(f"openstack {kind} delete {name}")

        def gone(name: str = name) -> bool:
            found = {row["Name"]: row["Status"] for row in cloud.openstack(f"{kind} list")}
            assert not found.get(name, "").startswith("error"), log(cloud)
            return name not in found

        eventually(f"the end of {kind} {name}", gone, 120)


def create(cloud: Machine, name: str, words: str = "--size 1") -> None:
    """A volume that is available."""
    cloud.shell(f"openstack volume create {words} {name}")
    becomes(cloud, "volume", name, "available")


def write(cloud: Machine, words: str) -> None:
    """Words at the beginning of the second disk."""
    inside(cloud, f"echo {words} | dd of=/dev/vdb conv=sync 2>/dev/null && sync")


def words(cloud: Machine) -> str:
    """The words there, read from the disk."""
    return inside(cloud, "echo 1 >/proc/sys/vm/drop_caches; head -c 512 /dev/vdb | tr -d '\\000'")


@pytest.fixture(scope="module")
def holder(cloud: Machine) -> str:
    """An instance to attach volumes to."""
    address = boot(cloud, "--image ami-tty", "holder")
    (cloud.folder / "holder").write_text(address)
    return address


@pytest.fixture(scope="module")
def written(cloud: Machine, holder: str) -> str:
    """A volume of 1 GiB, `first`, with a file system and a file on it; the SHA-256 of that file."""
    cloud.shell("openstack volume create --size 1 first")
    becomes(cloud, "volume", "first", "available")
    attach(cloud, "first", 1)
    inside(cloud, "mke2fs /dev/vdb && mount -t ext4 /dev/vdb /mnt && dd if=/dev/urandom of=/mnt/data bs=1M count=8")
    inside(cloud, "umount /mnt")
    digest = data(cloud)
    detach(cloud, "first")
    return digest


@pytest.fixture(scope="module")
def restored(cloud: Machine, written: str) -> str:
    """A snapshot of `first`, which then changes, and is restored into `second`; the SHA-256 of what `first` has now."""
    cloud.shell("openstack volume snapshot create --volume first then")
    becomes(cloud, "volume snapshot", "then", "available")
    attach(cloud, "first", 1)
    assert data(cloud) == written
    inside(cloud, "mount -t ext4 /dev/vdb /mnt && dd if=/dev/urandom of=/mnt/data bs=1M count=4 && umount /mnt")
    changed = data(cloud)
    detach(cloud, "first")
    cloud.shell("openstack volume create --snapshot then second")
    becomes(cloud, "volume", "second", "available")
    return changed


def test_a_volume_keeps_what_an_instance_wrote(cloud: Machine, written: str) -> None:
    attach(cloud, "first", 1)
    assert data(cloud) == written
    detach(cloud, "first")


def test_a_snapshot_is_restored_into_a_second_volume(cloud: Machine, written: str, restored: str) -> None:
    attach(cloud, "second", 1)
    assert data(cloud) == written != restored
    detach(cloud, "second")


def test_an_extended_volume_is_larger_and_keeps_its_data(cloud: Machine, written: str, restored: str) -> None:
    cloud.shell("openstack volume set --size 2 second")
    eventually("the larger volume", lambda: cloud.openstack("volume show second")["size"] == 2)
    becomes(cloud, "volume", "second", "available")
    attach(cloud, "second", 2)
    assert data(cloud) == written
    detach(cloud, "second")


def test_only_root_reads_what_is_on_volumes(cloud: Machine, restored: str) -> None:
    disk = cloud.folder / "nova/state/volumes/disk"
    assert (disk.stat().st_uid, disk.stat().st_mode & 0o777) == (0, 0o600)
    assert 8 * MIB < disk.stat().st_blocks * 512 < disk.stat().st_size


def test_a_deleted_volume_and_its_files_are_gone(cloud: Machine, restored: str) -> None:
    assert len(files(cloud)) >= 3  # first, what was written to it since the snapshot, second
    cloud.shell("openstack volume snapshot delete then")
    eventually("the snapshot's end", lambda: cloud.openstack("volume snapshot list") == [])
    cloud.shell("openstack volume delete first second")
    eventually("the volumes' end", lambda: cloud.openstack("volume list") == [])
    assert files(cloud) == {}


def test_an_instance_boots_from_a_volume_which_outlives_it(cloud: Machine) -> None:
    cloud.shell("openstack volume create --size 1 --image ami-tty --bootable root")
    becomes(cloud, "volume", "root", "available")
    address = boot(cloud, "--volume root", "booted")
    assert cloud.openstack("server show booted")["image"] in ("", None, "N/A (booted from volume)")
    cloud.ssh(address, "echo here I was >/root/note; sync")
    delete_server(cloud, "booted")
    becomes(cloud, "volume", "root", "available")
    address = boot(cloud, "--volume root", "again")
    assert cloud.ssh(address, "cat /root/note") == "here I was"
    snapshot(cloud, "root", "of-root")
    cloud.ssh(address, "echo and here >>/root/note; sync")
    cloud.shell("openstack server stop again")
    eventually("its stop", lambda: cloud.openstack("server show again")["status"] == "SHUTOFF", 120)
    delete(cloud, "volume snapshot", "of-root")  # nova merges what libvirt left to the guest that was
    cloud.shell("openstack server start again")
    eventually("ssh again", lambda: cloud.ssh(address, "cat /root/note") == "here I was\nand here", 120)
    delete_server(cloud, "again")


def test_snapshots_of_an_attached_volume_come_and_go_while_the_instance_runs(cloud: Machine, holder: str) -> None:
    boot_id = inside(cloud, "cat /proc/sys/kernel/random/boot_id")
    create(cloud, "used")
    attach(cloud, "used", 1)
    for name in ("one", "two", "three"):
        write(cloud, f"before {name}")
        snapshot(cloud, "used", name)
    write(cloud, "after three")
    create(cloud, "from-two", "--snapshot two")
    delete(cloud, "volume snapshot", "two")
    assert words(cloud) == "after three"
    cloud.shell("openstack server pause holder")
    delete(cloud, "volume snapshot", "three")
    cloud.shell("openstack server unpause holder")
    delete(cloud, "volume snapshot", "one")
    assert words(cloud) == "after three"
    assert inside(cloud, "cat /proc/sys/kernel/random/boot_id") == boot_id
    detach(cloud, "used")
    attach(cloud, "from-two", 1)
    assert words(cloud) == "before two"
    detach(cloud, "from-two")
    delete(cloud, "volume", "from-two")


@pytest.mark.slow
def test_a_volume_of_qcow2_is_backed_up_and_restored(cloud: Machine, holder: str) -> None:
    attach(cloud, "used", 1)
    cloud.shell("openstack volume backup create --force --name full used")
    becomes(cloud, "volume backup", "full", "available")
    becomes(cloud, "volume", "used", "in-use")
    write(cloud, "since then")
    detach(cloud, "used")
    snapshot(cloud, "used", "there")
    cloud.shell("openstack volume backup create --incremental --name more used")
    becomes(cloud, "volume backup", "more", "available")
    for name, found in (("full", "after three"), ("more", "since then")):
        cloud.shell(f"openstack volume backup restore {name} restored")
        becomes(cloud, "volume", "restored", "available")
        attach(cloud, "restored", 1)  # as large as the volume was, though the backup leaves out its zeros
        assert words(cloud) == found
        detach(cloud, "restored")
        delete(cloud, "volume", "restored")
    cloud.shell("openstack volume backup restore --force more used")  # refused: it has a snapshot
    becomes(cloud, "volume", "used", "error_restoring")
    cloud.shell("openstack volume set --state available used")
    assert len(cloud.openstack("object list volumebackups")) > 1
    delete(cloud, "volume backup", "more", "full")


@pytest.mark.slow
def test_a_volume_is_reverted_to_its_snapshot(cloud: Machine, holder: str) -> None:
    attach(cloud, "used", 1)
    assert words(cloud) == "since then"
    write(cloud, "a mistake")
    detach(cloud, "used")
    cloud.shell("openstack --os-volume-api-version 3.40 volume revert there")
    becomes(cloud, "volume", "used", "available")
    attach(cloud, "used", 1)
    assert words(cloud) == "since then"
    detach(cloud, "used")
    create(cloud, "clone", "--source used")
    attach(cloud, "clone", 1)
    assert words(cloud) == "since then"
    detach(cloud, "clone")
    delete(cloud, "volume snapshot", "there")
    delete(cloud, "volume", "clone", "used")


def test_an_encrypted_volume_is_clear_text_in_the_instance_alone(cloud: Machine, holder: str) -> None:
    cipher = "--encryption-cipher aes-xts-plain64 --encryption-key-size 256 --encryption-control-location front-end"
    cloud.shell(f"openstack volume type create --encryption-provider luks {cipher} secret")
    create(cloud, "hidden", "--size 1 --type secret")
    for found in ("", "clear text"):
        cloud.shell("openstack server add volume holder hidden")
        becomes(cloud, "volume", "hidden", "in-use")
        eventually("the disk in the instance", lambda: 0 < 1024 * 2048 - sectors(cloud) <= 4096)  # its header's room
        assert words(cloud) == found or not found
        write(cloud, "clear text")
        keeper, name = share(cloud), f"volume-{cloud.openstack('volume show hidden')['id']}"
        assert b"clear text" not in (keeper / name).read_bytes()[: 8 * MIB]
        detach(cloud, "hidden")
    cloud.shell("openstack --os-volume-api-version 3.66 volume snapshot create --volume hidden no-way")
    becomes(cloud, "volume snapshot", "no-way", "error")
    delete(cloud, "volume snapshot", "no-way")
    delete(cloud, "volume", "hidden")


@pytest.mark.slow
def test_what_files_cannot_do_is_refused(cloud: Machine, holder: str) -> None:
    cloud.shell("openstack volume type create --property 'multiattach=<is> True' shared")
    cloud.shell("openstack volume create --size 1 --type shared for-two")
    becomes(cloud, "volume", "for-two", "error")
    cloud.shell("openstack volume type create --property volume_backend_name=files --property vendor_name='Open Source' of-files")
    create(cloud, "mine", "--size 1 --type of-files")
    attach(cloud, "mine", 1)
    with pytest.raises(AssertionError, match="Policy doesn't allow volume:extend_attached_volume"):
        cloud.shell("openstack --os-volume-api-version 3.42 volume set --size 2 mine")
    assert {name: cloud.openstack("volume show mine")[name] for name in ("size", "status")} == {"size": 1, "status": "in-use"}
    detach(cloud, "mine")
    given = cloud.openstack("volume transfer request create mine")
    cloud.shell(f"openstack volume transfer request accept --auth-key {given['auth_key']} {given['id']}")
    delete(cloud, "volume", "mine")
    cloud.shell("openstack volume delete for-two")


def test_volumes_size_bounds_a_project(cloud: Machine) -> None:
    with pytest.raises(AssertionError, match=f"exceeds allowed gigabytes quota. Requested {SIZE + 1}G"):
        cloud.shell(f"openstack volume create --size {SIZE + 1} large")
    assert [row for row in cloud.openstack("volume list") if row["Name"] == "large"] == []


def test_volumes_size_bounds_all_projects(cloud: Machine) -> None:
    cloud.shell(f"openstack quota set --gigabytes {SIZE * 5} admin")
    for name, size in (("large", SIZE + 1), ("half", SIZE // 2), ("too", SIZE // 2 + 1)):
        cloud.shell(f"openstack volume create --size {size} {name}")
        becomes(cloud, "volume", name, "available" if name == "half" else "error")
    assert sum(files(cloud).values()) <= SIZE * 1024 * MIB


def test_terminate_deletes_volumes_whatever_state_they_are_in(cloud: Machine, holder: str) -> None:
    cloud.shell("openstack volume snapshot create --volume root of-it")
    becomes(cloud, "volume snapshot", "of-it", "available")
    cloud.shell("openstack volume create --size 1 last")
    becomes(cloud, "volume", "last", "available")
    attach(cloud, "last", 1)
    cloud.shell("openstack volume set --state error root")
    cloud.nova("terminate")
    assert cloud.openstack("volume list --all-projects") == []
    assert cloud.openstack("volume snapshot list --all-projects") == []
    assert cloud.openstack("server list --all-projects") == []
    assert files(cloud) == {}
    disk = cloud.folder / "nova/state/volumes/disk"
    eventually("the disk's room", lambda: disk.stat().st_blocks * 512 < 8 * MIB)


def test_more_than_the_machine_has_is_refused(cloud: Machine) -> None:
    said = cloud.nova("install", "other", ok=2, env={"VOLUMES_SIZE": "9999"})
    assert re.search(r"VOLUMES_SIZE=9999: [\d.]+ GiB of disk free", said)
    assert not (cloud.folder / "other").exists()
