# SPDX-License-Identifier: Apache-2.0
"""LIBVIRT_TYPE: KVM that works or not, and what containers need and cannot have. No guest is started here."""

from __future__ import annotations

import ast
import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nova

from .conftest import Machine, recorded

HIERARCHIES = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuacct\t2\t1\t1\nmemory\t4\t27\t1\ndevices\t5\t1\t1\n"
NO_HIERARCHIES = HIERARCHIES.replace("\t2\t", "\t0\t").replace("\t4\t", "\t0\t").replace("\t5\t", "\t0\t")


def refused(cfg: nova.Settings) -> str:
    """The words of a refusal that comes before anything is changed."""
    with pytest.raises(nova.Failure) as caught:
        nova.check_machine(cfg)
    assert caught.value.code == 2 and "use qemu" in (str(caught.value) + caught.value.hint)
    return str(caught.value)


# ---- kvm ----


@pytest.fixture
def kvm(cfg: nova.Settings, machine: Machine) -> nova.Settings:
    machine.put("/dev/kvm")
    return nova.replace(cfg, LIBVIRT_TYPE="kvm")


def test_without_the_device_kvm_is_refused(kvm: nova.Settings, machine: Machine) -> None:
    machine.path("/dev/kvm").unlink()
    assert re.match(r"LIBVIRT_TYPE=kvm: no \S*/dev/kvm, and", refused(kvm))


def test_a_guest_that_runs_is_what_kvm_is_known_by(kvm: nova.Settings, machine: Machine) -> None:
    machine.fake("timeout", "echo it ran")
    nova.check_machine(kvm)
    (call,) = machine.called()
    assert call.startswith("timeout --signal=KILL 5 ") and call.endswith("/conf/kvm-probe.py")


ENDS = {
    "kill -KILL $$": "a guest that needs a tenth of a second has not ended after five",
    "exit 137": "a guest that needs a tenth of a second has not ended after five",
    "echo '[Errno 16] Device or resource busy: /dev/kvm'; exit 1": "[Errno 16] Device or resource busy: /dev/kvm",
    "echo a guest stops for the reason 17 of linux/kvm.h": "a guest stops for the reason 17 of linux/kvm.h",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_device_that_does_not_work_is_told_from_none(kvm: nova.Settings, machine: Machine, end: str) -> None:
    machine.fake("timeout", end)
    assert refused(kvm) == f"LIBVIRT_TYPE=kvm: /dev/kvm is there but does not work ({ENDS[end]})"


@pytest.mark.parametrize("kind", ["qemu", "lxc"])
def test_others_start_no_guest_to_find_out(cfg: nova.Settings, machine: Machine, kind: str) -> None:
    machine.put("/dev/kvm")
    machine.put("/dev/loop-control")
    machine.put("/proc/cgroups", HIERARCHIES)
    nova.check_machine(nova.replace(cfg, LIBVIRT_TYPE=kind))
    assert machine.called() == []


def test_the_probes_numbers_are_the_kernels() -> None:
    """Of an ioctl's number, the upper half is the size of what is passed: the structures have to be as large."""
    tree = ast.parse((nova.HERE / "conf/kvm-probe.py").read_text())
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            for name, value in zip(node.targets[0].elts, node.value.elts, strict=True):
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                    found[name.id] = value.value
    sizes = {name: (found[name] >> 16) & 0x3FFF for name in ("SET_USER_MEMORY_REGION", "GET_SREGS", "SET_SREGS", "SET_REGS")}
    assert sizes == {
        "SET_USER_MEMORY_REGION": struct.calcsize("<IIQQQ"),
        "GET_SREGS": 8 * struct.calcsize("<QIH10B") + 2 * 16 + 7 * 8 + 32,
        "SET_SREGS": 312,
        "SET_REGS": struct.calcsize("<18Q"),
    }
    assert {found[name] >> 8 & 0xFF for name in sizes} == {0xAE}


# ---- lxc ----


@pytest.fixture
def lxc(cfg: nova.Settings, machine: Machine) -> nova.Settings:
    """Containers, on a machine that can have them."""
    machine.put("/dev/loop-control")
    machine.put("/proc/cgroups", HIERARCHIES)
    return nova.replace(cfg, LIBVIRT_TYPE="lxc")


def test_containers_need_loop_devices(lxc: nova.Settings, machine: Machine) -> None:
    machine.path("/dev/loop-control").unlink()
    assert re.match(r"LIBVIRT_TYPE=lxc: no \S*/dev/loop-control, and", refused(lxc))


@pytest.mark.parametrize("one", nova.CONTROLLERS)
def test_containers_need_three_control_groups(lxc: nova.Settings, machine: Machine, one: str) -> None:
    machine.put("/proc/cgroups", HIERARCHIES.replace(one, "other"))
    assert refused(lxc).startswith("LIBVIRT_TYPE=lxc: no control groups cpuacct, devices, memory")


@pytest.mark.parametrize(("controllers", "enough"), [("cpuset cpu io memory pids\n", True), ("", False)])
def test_or_version_2_that_limits_memory(lxc: nova.Settings, machine: Machine, controllers: str, enough: bool) -> None:
    machine.put("/proc/cgroups", NO_HIERARCHIES)
    machine.put("/sys/fs/cgroup/cgroup.controllers", controllers)
    if enough:
        nova.check_machine(lxc)
    else:
        assert "no control groups" in refused(lxc)


@pytest.mark.parametrize("controllers", ["", "memory\n"])
def test_version_1_is_the_clouds_own_mount_where_it_is_needed(
    lxc: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch, controllers: str
) -> None:
    machine.put("/sys/fs/cgroup/cgroup.controllers", controllers)
    machine.fake("umount", "exit 32")  # nothing is mounted there
    machine.fake("mount")
    nova.mount_root(lxc)
    own = [line.split()[-1] for line in machine.called() if "-t cgroup " in line]
    place = "/run/nova.py/state/root/sys/fs/cgroup"
    assert own == ([] if controllers else [f"{place}/{name}" for name in nova.CONTROLLERS])
    machine.calls.unlink()
    nova.mount_root(nova.replace(lxc, LIBVIRT_TYPE="qemu"))
    assert "cgroup" not in machine.transcript()


def test_control_groups_that_were_not_there_are_taken_back(lxc: nova.Settings, machine: Machine) -> None:
    for name in nova.CONTROLLERS:
        machine.path(f"/sys/fs/cgroup/{name}").mkdir(parents=True)
    machine.path("/sys/fs/cgroup/memory/machine").mkdir()  # another libvirt's
    nova.record_groups()
    new = " ".join(str(nova.CGROUPS / name / "machine") for name in ("cpuacct", "devices"))
    assert recorded() == [f"find {new} -depth -type d -delete"]


def test_wires_and_disks_are_as_containers_have_them(lxc: nova.Settings) -> None:
    nova.make_folders(lxc)
    conf = [nova.render((nova.HERE / name).read_text(), lxc) for name in ("nova.conf.tmpl", "conf/neutron.conf.tmpl")]
    assert "\nvirt_type = lxc\n" in conf[0] and "\nimages_type = raw\n" in conf[0] and "\novs_create_tap = false\n" in conf[1]
    conf = [
        nova.render((nova.HERE / name).read_text(), nova.replace(lxc, LIBVIRT_TYPE="qemu"))
        for name in ("nova.conf.tmpl", "conf/neutron.conf.tmpl")
    ]
    assert "\nimages_type = default\n" in conf[0] and "\novs_create_tap = true\n" in conf[1]


def test_containers_are_destroyed_by_their_own_driver(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "answers", lambda place: True)
    machine.fake("virsh", 'case "$*" in "--connect lxc:/// list"*) echo box;; list*) echo vm;; esac')
    nova.destroy_domains()
    assert [line for line in machine.called() if " list " not in line] == [
        "virsh destroy vm",
        "virsh undefine --nvram --managed-save vm",
        "virsh --connect lxc:/// destroy box",
        "virsh --connect lxc:/// undefine box",
    ]


def test_a_container_is_of_the_cloud_whose_libvirt_knows_it(lxc: nova.Settings, machine: Machine) -> None:
    ours, other, mine = 1, os.getpid(), "9b318747-9199-4a3a-a49e-b2902d0273ea"  # two processes that there are
    machine.has_cloud("self")
    machine.put(f"/proc/{ours}/environ", f"HOME=/\0LIBVIRT_LXC_UUID={mine}\0LIBVIRT_LXC_NAME=instance-1\0")
    machine.put(f"/proc/{other}/environ", f"LIBVIRT_LXC_UUID={mine.replace('9', '8')}\0LIBVIRT_LXC_NAME=instance-1\0")
    assert nova.processes() == []
    machine.put(nova.DOMAINS / "lxc/instance-1.xml", f"<domain>\n  <uuid>{mine}</uuid>\n</domain>\n")
    assert [found.pid for found in nova.processes()] == [ours]


def test_scrub_detaches_the_disks_of_containers_that_nova_did_not_end(lxc: nova.Settings, machine: Machine) -> None:
    mine = "9b318747-9199-4a3a-a49e-b2902d0273ea"
    machine.put(nova.DOMAINS / "lxc/instance-1.xml", f"<domain>\n  <uuid>{mine}</uuid>\n</domain>\n")
    files = {"loop1": f"/instances/{mine}/disk", "loop2": f"/instances/{mine.replace('9', '8')}/disk", "loop3": "/srv/disk"}
    for device, file in files.items():
        machine.put(f"/sys/block/{device}/loop/backing_file", f"{file}\n")
    machine.fake("losetup")
    nova.remove_traces()
    assert machine.called() == ["losetup --detach /dev/loop1"]
    assert not (nova.DOMAINS / "lxc/instance-1.xml").exists()


XML = "<interface type='ethernet'>\n  <mac address='fa:6e:70:af:47:20'/>\n  <target dev='tap99d8001b-9d'/>\n</interface>\n"


@pytest.mark.parametrize(
    ("operation", "calls"), [("started", ["ip link set tap99d8001b-9d up"]), ("prepare", []), ("release", [])]
)
def test_the_hook_sets_a_started_instances_end_of_the_wire_up(
    lxc: nova.Settings, machine: Machine, real: Callable[[str], str], operation: str, calls: list[str]
) -> None:
    """Once Open vSwitch has set the device's flags: here it has."""
    nova.make_folders(lxc)
    flags = machine.put("/sys/class/net/tap99d8001b-9d/flags", "0x1102\n")
    text = nova.render((nova.HERE / "conf/libvirt-hook.tmpl").read_text(), lxc)
    hook = machine.put("/srv/hook", text.replace('/sys/class/net/"$tap"', str(flags.parent)))
    machine.fake("ip")
    sed = Path(real("sed")).parent
    line = [real("sh"), str(hook), "instance-1", operation, "begin", "-"]
    path = f"{machine.commands}:{sed}:/usr/bin:/bin"
    subprocess.run(line, input=XML, text=True, check=True, env={**os.environ, "PATH": path})
    assert [line[line.index("ip link") :] for line in machine.called()] == calls
