"""LIBVIRT_TYPE=lxc: an instance is a container, made from the same image, and reached as any other."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from .conftest import Machine, eventually, on, read

pytestmark = on("lxc")
EMULATOR = "/usr/lib/libvirt/libvirt_lxc"


@pytest.fixture(scope="module")
def box(cloud: Machine) -> str:
    """A container with a floating address that answers ssh: that address."""
    cloud.boot("box")
    address = cloud.floating("box")
    eventually("ssh to the container", lambda: cloud.ssh(address, "hostname") == "box")
    return address


def keeper() -> psutil.Process:
    """The process of libvirt's that holds the only container."""
    (found,) = [process for process in psutil.process_iter(["cmdline"]) if EMULATOR in (process.info["cmdline"] or ())]
    return found


def init() -> int:
    """The process of this machine that is the only container's process 1."""
    (found,) = keeper().children()
    return int(found.pid)


def disks() -> list[str]:
    """The files of instances that are loop devices."""
    files = [read(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return [file for file in files if "/instances/" in file]


def test_an_instance_is_a_container_of_this_machine(cloud: Machine, box: str) -> None:
    assert cloud.ssh(box, "uname -r") == read("/proc/sys/kernel/osrelease")
    inside = cloud.ssh(box, "readlink /proc/1/ns/pid; readlink /proc/1/ns/net").split()
    assert inside == [os.readlink(f"/proc/{init()}/ns/{kind}") for kind in ("pid", "net")]
    assert not {*inside} & {os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net")}
    assert "ami-tty: ssh ready" in cloud.shell("openstack console log show box")


def test_its_memory_and_its_disk_are_its_flavors(cloud: Machine, box: str) -> None:
    assert ".libvirt-lxc" in read(f"/proc/{init()}/cgroup")
    assert cloud.ssh(box, "sed -n 's/^MemTotal: *//p' /proc/meminfo").split() == [str(512 * 1024), "kB"]
    (blocks,) = cloud.ssh(box, "df -P -k / | awk 'NR == 2 { print $2 }'").split()
    assert 900 * 1024 < int(blocks) <= 1024 * 1024


def test_stopped_it_starts_again_as_it_was(cloud: Machine, box: str) -> None:
    cloud.ssh(box, "echo kept >/root/note; sync")
    held = keeper()
    cloud.shell("openstack server stop box")
    eventually("the container's end, before nova's patience of a minute", lambda: not held.is_running(), 30)
    eventually("nova knows it", lambda: cloud.openstack("server show box")["status"] == "SHUTOFF", 30)
    cloud.shell("openstack server start box")
    eventually("ssh to the container", lambda: cloud.ssh(box, "cat /root/note") == "kept")


@pytest.mark.parametrize("time", [1, 2, 3])
def test_its_wire_is_up_each_time(cloud: Machine, box: str, time: int) -> None:
    """Every second time it was not, before conf/libvirt-hook.tmpl: Open vSwitch and libvirt set it up at the same moment."""
    before = init()
    cloud.shell("openstack server reboot --hard --wait box")
    assert init() != before
    eventually("ssh to the container", lambda: cloud.ssh(box, "hostname") == "box")


def test_deleted_it_leaves_nothing(cloud: Machine, box: str) -> None:
    held = keeper()
    cloud.shell("openstack server delete --wait box")
    assert not held.is_running()
    assert list((cloud.folder / "nova/state/root/etc/libvirt/lxc").glob("*.xml")) == []
    eventually("the end of its loop device", lambda: not disks())


def test_clean_and_scrub_take_down_what_nova_did_not(cloud: Machine) -> None:
    """The last one: the fixture looks whether anything is left."""
    cloud.boot("left")
    process = init()
    cloud.nova("clean")
    eventually("the container's end", lambda: not psutil.pid_exists(process), 5)
    cloud.nova("scrub")
    assert disks() == []
