"""FlatManager: one network without a DHCP server, addresses by config drive; INTERFACE and FLOATING_RANGE other than usual."""

from __future__ import annotations

import ipaddress

import pytest

from .conftest import Machine, ask, eventually, on

pytestmark = on("flat")


@pytest.fixture(scope="module")
def one(cloud: Machine) -> str:
    """An instance: its fixed address, which answers ssh from this machine without a floating one."""
    return cloud.boot_and_reach("one")


def test_host_ip_is_the_address_of_interface(cloud: Machine) -> None:
    assert cloud.host_ip() == "198.51.100.10"


def test_the_address_comes_by_config_drive(cloud: Machine, one: str) -> None:
    log = cloud.shell("openstack console log show one")
    assert f"address {one}/" in log and "config drive ok" in log and "metadata ok" not in log
    assert one in cloud.ssh(one, "ip -4 address show dev eth0")


def test_no_dhcp_server_answers(cloud: Machine, one: str) -> None:
    said = cloud.ssh(one, "udhcpc -i eth0 -n -q -f -t 3 -T 2 -s /bin/true 2>&1 || true")
    assert "broadcasting discover" in said and "no lease, failing" in said and "obtained" not in said


def test_instances_and_this_machine_reach_each_other(cloud: Machine, one: str) -> None:
    two = cloud.boot_and_reach("two")
    assert cloud.reaches(one, two) and cloud.reaches(two, one)
    assert cloud.reaches(one, "10.0.0.254"), "this machine"
    assert "dev br100" in ask("ip", "route", "get", one)


def test_floating_addresses_are_of_floating_range(cloud: Machine, one: str) -> None:
    address = cloud.floating("one")
    assert ipaddress.ip_address(address) in ipaddress.ip_network("10.66.0.0/28")
    eventually("ssh to the floating address", lambda: cloud.ssh(address, "hostname") == "one")
