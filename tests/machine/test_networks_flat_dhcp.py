"""FlatDHCPManager: a network for everybody, this machine and what is behind FLAT_INTERFACE; with IPv6; HOST_IP elsewhere."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import threading

import pytest

from .conftest import FAR, Machine, eventually, far, listener, on

pytestmark = on("flat-dhcp")


@pytest.fixture(scope="module")
def one(cloud: Machine) -> str:
    """An instance: its fixed address, which answers ssh from this machine without a floating one."""
    return cloud.boot_and_reach("one")


@pytest.fixture(scope="module")
def two(cloud: Machine, one: str) -> str:
    """Another one."""
    return cloud.boot("two")


@pytest.fixture(scope="module")
def one6(cloud: Machine, one: str) -> str:
    """The same instance's IPv6 address, as nova says it."""
    return next(a for a in cloud.openstack("server show one")["addresses"]["private"] if ":" in a)


def test_the_apis_are_at_host_ip_and_answer_others(cloud: Machine) -> None:
    assert cloud.host_ip() == "198.51.100.10"
    script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).status)"
    assert far("python3", "-c", script, "http://198.51.100.10:5000/v3").strip() == "200"


def test_a_dhcp_server_answers(cloud: Machine, one: str) -> None:
    ask_for_it = "udhcpc -i eth0 -n -q -f -t 3 -T 2 -s /bin/true 2>&1 || true"
    eventually("its answer", lambda: f"lease of {one} obtained" in cloud.ssh(one, ask_for_it))


def test_instances_reach_each_other(cloud: Machine, one: str, two: str) -> None:
    eventually("ping from one to two", lambda: cloud.reaches(one, two))
    eventually("ssh of two from one", lambda: "SSH-2.0" in cloud.ssh(one, f"nc -w 3 {two} 22 </dev/null"))


def test_every_project_has_this_network(cloud: Machine) -> None:
    shown = cloud.openstack("network show private")
    assert (shown["provider:network_type"], shown["shared"]) == ("flat", True)


def test_instances_reach_this_machine_on_their_own_network(cloud: Machine, one: str) -> None:
    server = listener("10.0.0.254")
    came: list[str] = []
    thread = threading.Thread(target=lambda: came.append(server.accept()[1][0]), daemon=True)
    thread.start()
    knock = f"nc -w 3 10.0.0.254 {server.getsockname()[1]} </dev/null || true"
    eventually("a connection", lambda: [cloud.ssh(one, knock), thread.join(1), came][-1])
    assert came == [one], "as itself, through no router"


def test_what_is_behind_flat_interface_reaches_instances(cloud: Machine, one: str) -> None:
    far("ip", "address", "replace", "10.0.0.253/24", "dev", "far0")
    try:
        eventually("ping from the far end", lambda: " 0% packet loss" in far("ping", "-c", "3", "-W", "2", one))
        options = "-oBatchMode=yes -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oConnectTimeout=5"
        assert far("ssh", "-i", str(cloud.key), *options.split(), f"root@{one}", "hostname").strip() == "one"
    finally:
        far("ip", "address", "flush", "dev", "far0")


def test_floating_addresses_work_as_well(cloud: Machine, one: str) -> None:
    address = cloud.floating("one")
    eventually("ssh to the floating address", lambda: cloud.ssh(address, "hostname") == "one")


# ---- IPv6 ----


def test_an_instance_has_an_address_by_router_advertisement(cloud: Machine, one: str, one6: str) -> None:
    assert ipaddress.ip_address(one6) in ipaddress.ip_network("fdcc:1:2::/64")
    shown = cloud.ssh(one, "ip -6 address show dev eth0 scope global")
    assert f"inet6 {one6}/64" in shown and "dynamic" in shown
    assert "default via fe80:" in cloud.ssh(one, "ip -6 route")


def test_it_answers_ping_and_ssh_over_ipv6(cloud: Machine, one6: str) -> None:
    pinged = lambda: " 0% packet loss" in subprocess.run(
        ["ping", "-6", "-c", "3", "-W", "2", one6], capture_output=True, text=True, check=False
    ).stdout  # fmt: skip
    eventually("ping", pinged)
    eventually("ssh", lambda: cloud.ssh(one6, "hostname") == "one")


def test_instances_reach_each_other_over_ipv6(cloud: Machine, one: str, two: str) -> None:
    two6 = next(a for a in cloud.openstack("server show two")["addresses"]["private"] if ":" in a)
    eventually("ping", lambda: cloud.reaches(one, two6))


def test_it_reaches_the_outside_over_ipv6_through_this_machine(cloud: Machine, one: str) -> None:
    script = (
        "import socket; s = socket.create_server(('2001:db8::20', 7000), family=socket.AF_INET6); s.settimeout(60)\n"
        "print('ready', flush=True); c, who = s.accept(); c.sendall(b'hello from outside\\n'); print(who[0])"
    )
    with subprocess.Popen([*FAR, "python3", "-c", script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout and server.stdout.readline() == "ready\n"
        assert cloud.ssh(one, "nc -w 10 2001:db8::20 7000 </dev/null") == "hello from outside"
        assert server.stdout.read().strip() == "2001:db8::10", "from this machine's address: instances' own are private"


def test_this_machine_hears_the_routers_that_it_heard_before(cloud: Machine) -> None:
    heard = {
        line.split()[-1] for line in cloud.shell("cat /proc/net/ipv6_route").splitlines() if line.startswith("0" * 32 + " 00 ")
    }
    for name in heard - {"lo"}:
        assert re.fullmatch("[02]", cloud.shell(f"cat /proc/sys/net/ipv6/conf/{name}/accept_ra")), name
