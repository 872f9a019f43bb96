"""LIBVIRT_TYPE=lxc: an instance is a container, from the same image, and is reached as any other."""

from __future__ import annotations

from pathlib import Path

import psutil

from .conftest import Machine, eventually, on, read

pytestmark = on("lxc")


def init_of(cloud: Machine, name: str) -> int:
    """The process of this machine that the instance has as its process 1."""
    domain = cloud.openstack(f"server show {name}")["OS-EXT-SRV-ATTR:instance_name"]
    (keeper,) = [it for it in psutil.process_iter(["cmdline"]) if {"libvirt_lxc", domain} <= words(it)]
    (init,) = keeper.children()
    return int(init.pid)


def words(process: psutil.Process) -> set[str]:
    """The words of a process's command line, paths by their last part."""
    return {Path(word).name for word in process.info["cmdline"] or ()}


def test_an_instance_is_a_container_with_an_address_its_name_and_ssh(cloud: Machine) -> None:
    cloud.boot("box")
    address = cloud.floating("box")
    eventually("ssh to the container", lambda: cloud.ssh(address, "hostname") == "box")
    assert cloud.ssh(address, "uname -r") == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert "init" in cloud.ssh(address, "cat /proc/1/cmdline")
    inside = cloud.ssh(address, "readlink /proc/1/ns/pid")
    assert inside != str(Path("/proc/1/ns/pid").readlink())
    assert str(Path(f"/proc/{init_of(cloud, 'box')}/ns/pid").readlink()) == inside
    assert "ami-tty: ssh ready" in cloud.shell("openstack console log show box")


def test_its_memory_and_its_disk_are_its_flavors(cloud: Machine) -> None:
    address = cloud.openstack("floating ip list --status ACTIVE")[0]["Floating IP Address"]
    group = Path(f"/proc/{init_of(cloud, 'box')}/cgroup").read_text()
    assert ".libvirt-lxc" in group
    (kib,) = cloud.ssh(address, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo").split()
    assert int(kib) == 512 * 1024
    (blocks,) = cloud.ssh(address, "df -P -k / | awk 'NR == 2 { print $2 }'").split()
    assert 900 * 1024 < int(blocks) <= 1024 * 1024


def test_stopped_it_starts_again_as_it_was(cloud: Machine) -> None:
    address = cloud.openstack("floating ip list --status ACTIVE")[0]["Floating IP Address"]
    cloud.ssh(address, "echo kept >/root/note; sync")
    cloud.shell("openstack server stop box")
    eventually("the container's end", lambda: cloud.openstack("server show box")["status"] == "SHUTOFF", 30)
    cloud.shell("openstack server start box")
    eventually("ssh to the container", lambda: cloud.ssh(address, "cat /root/note") == "kept")


def test_deleted_it_leaves_nothing(cloud: Machine) -> None:
    keeper = psutil.Process(init_of(cloud, "box")).parent()
    cloud.shell("openstack server delete --wait box")
    assert keeper is not None and not keeper.is_running()
    assert list((cloud.folder / "nova/state/libvirt/etc/lxc").glob("*.xml")) == []
    eventually("the end of its loop device", lambda: not instances_loops())


def instances_loops() -> list[str]:
    """The files of instances that are loop devices."""
    files = [read(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return [file for file in files if file.startswith("/run/nova.py/instances/")]


def test_the_cloud_ends_with_a_container_in_it(cloud: Machine) -> None:
    """The end of the fixture looks whether anything is left."""
    cloud.boot("left")
    assert init_of(cloud, "left")
