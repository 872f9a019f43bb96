"""VlanManager: a VLAN a project, seen from inside, from other projects, and on the wire of FLAT_INTERFACE."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Machine, eventually, far, on

pytestmark = on("vlan")

WIRE = (sys.executable, str(Path(__file__).with_name("wire.py")), "far0")
# What another project's people do: their own network in the same range as private's, and who may come in.
OTHER = """
openstack project create other
openstack user create --project other --password other-password other
openstack role add --project other --user other member
export OS_PROJECT_NAME=other OS_USERNAME=other OS_PASSWORD=other-password
openstack network create other
openstack subnet create --network other --subnet-range 10.11.0.0/24 --allocation-pool start=10.11.0.100,end=10.11.0.120 other
openstack router create --external-gateway public other
openstack router add subnet other other
openstack security group rule create --protocol icmp default
openstack security group rule create --protocol tcp --dst-port 22 default
openstack keypair create --public-key {key}.pub mine
"""
AS_OTHER = "export OS_PROJECT_NAME=other OS_USERNAME=other OS_PASSWORD=other-password; "


@pytest.fixture(scope="module")
def addresses(cloud: Machine) -> dict[str, str]:
    """Fixed addresses of one and two (the admin's) and three (another project's), and the floating ones of one and three."""
    found = {name: cloud.boot(name) for name in ("one", "two")}
    cloud.shell("set -e" + OTHER.format(key=cloud.key) + "openstack server create --image ami-tty --flavor m1.tiny"
                " --network other --key-name mine --wait three")  # fmt: skip
    found["three"] = cloud.shell(AS_OTHER + "openstack server show three -f value -c addresses").split("'")[3]
    found["to one"] = cloud.floating("one")
    line = AS_OTHER + "openstack floating ip create public -f value -c floating_ip_address"
    found["to three"] = cloud.shell(line)
    cloud.shell(AS_OTHER + f"openstack server add floating ip three {found['to three']}")
    for name in ("to one", "to three"):
        eventually(f"ssh {name}", lambda at=found[name]: cloud.ssh(at, "true") == "")  # type: ignore[misc]
    return found


@pytest.fixture(scope="module")
def tags(cloud: Machine, addresses: dict[str, str]) -> dict[str, int]:
    """The VLANs of the two networks, as neutron says them."""
    shown = {name: cloud.openstack(f"network show {name}") for name in ("private", "other")}
    assert {(s["provider:network_type"], s["provider:physical_network"]) for s in shown.values()} == {("vlan", "fixed")}
    return {name: int(s["provider:segmentation_id"]) for name, s in shown.items()}


def test_private_is_vlan_100_of_the_admin_alone(cloud: Machine, tags: dict[str, int]) -> None:
    assert tags["private"] == 100 != tags["other"]
    assert cloud.shell(AS_OTHER + "openstack network list -f value -c Name | sort").split() == ["other", "public"]


def test_instances_have_addresses_of_fixed_range(addresses: dict[str, str]) -> None:
    assert addresses["one"].startswith("10.11.0.") and addresses["two"].startswith("10.11.0.")


def test_instances_of_a_project_reach_each_other(cloud: Machine, addresses: dict[str, str]) -> None:
    eventually("ping from one to two", lambda: cloud.reaches(addresses["to one"], addresses["two"]))
    line = f"nc -w 3 {addresses['two']} 22 </dev/null"
    eventually("ssh of two from one", lambda: "SSH-2.0" in cloud.ssh(addresses["to one"], line))


def test_instances_of_another_project_are_not_seen(cloud: Machine, addresses: dict[str, str]) -> None:
    assert cloud.ssh(addresses["to three"], "hostname") == "three", "it is there, and lets pings in"
    assert not cloud.reaches(addresses["to one"], addresses["three"])
    assert not cloud.reaches(addresses["to three"], addresses["one"])


def test_projects_reach_each_other_by_floating_addresses(cloud: Machine, addresses: dict[str, str]) -> None:
    """Through two routers; security groups let it in."""
    eventually("ping from one to three", lambda: cloud.reaches(addresses["to one"], addresses["to three"]))
    eventually("ping from three to one", lambda: cloud.reaches(addresses["to three"], addresses["to one"]))


def seen(during: Callable[[], object], *question: object) -> set[tuple[int, str]]:
    """Tag and sender of each ARP packet that comes to the far end of FLAT_INTERFACE while something is done."""
    doing = threading.Thread(target=during)
    doing.start()
    lines = far(*WIRE, *map(str, question)).splitlines()
    doing.join()
    return {(int(line.split()[0]), line.split()[1]) for line in lines}


def test_projects_have_different_tags_on_the_wire(cloud: Machine, addresses: dict[str, str], tags: dict[str, int]) -> None:
    def look_for_nobody() -> None:  # so both ask the whole wire who has that address
        for name in ("to one", "to three"):
            cloud.ssh(addresses[name], "ping -c 2 -W 1 10.11.0.250 || true")

    wanted = {(tags["private"], addresses["one"]), (tags["other"], addresses["three"])}
    found = set[tuple[int, str]]()
    eventually("both tags", lambda: found.update(seen(look_for_nobody)) or found >= wanted)
    assert not {(tags["private"], addresses["three"]), (tags["other"], addresses["one"]), (0, addresses["one"])} & found


def test_the_far_end_reaches_an_instance_by_its_tag_alone(addresses: dict[str, str], tags: dict[str, int]) -> None:
    here, one = "10.11.0.251", addresses["one"]
    ask = lambda tag: seen(lambda: None, tag, here, one)
    eventually("an answer on the VLAN of private", lambda: (tags["private"], one) in ask(tags["private"]))
    assert (tags["other"], one) not in ask(tags["other"])


def test_an_interface_that_is_in_use_is_refused(cloud: Machine) -> None:
    for name, reason in (
        ("nova-none", "this machine has"),
        ("nova-host", "it has the address 198.51.100.10"),
        (cloud.default_interface(), "it carries the default route"),
    ):
        said = cloud.nova("run_detached", "elsewhere", ok=2, env={"FLAT_INTERFACE": name})
        assert f"FLAT_INTERFACE={name}: {reason}" in said
    assert not (cloud.folder / "elsewhere").exists(), "before anything is changed"


def test_an_interface_that_is_in_a_bridge_is_refused(cloud: Machine) -> None:
    lines = (
        "ip link add nova-br type bridge",
        "ip link add nova-in type veth peer name nova-out",
        "ip link set nova-in master nova-br",
    )
    try:
        for line in lines:
            subprocess.run(line.split(), check=True)
        said = cloud.nova("run_detached", "elsewhere", ok=2, env={"FLAT_INTERFACE": "nova-in"})
        assert "FLAT_INTERFACE=nova-in: it is in nova-br already" in said
    finally:
        for name in ("nova-in", "nova-br"):
            subprocess.run(["ip", "link", "delete", name], check=False)
