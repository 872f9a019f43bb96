# SPDX-License-Identifier: Apache-2.0
"""NET_MAN, FLAT_INTERFACE and USE_IPV6: what is refused, what the machine and the APIs are asked for, what is recorded."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

import nova

from .conftest import Machine, recorded

Fake = Callable[..., None]
DEFAULT6 = f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 00000001 00000000 00450003     eth0\n"
TO_ITSELF = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 00000001 00000000 00200200       lo\n"


def refused(environ: dict[str, str]) -> str:
    with pytest.raises(nova.Failure) as caught:
        nova.settings_from(environ)
    assert caught.value.code == 2
    return str(caught.value)


# ---- What is refused ----


def test_an_idle_interface_may_join(machine: Machine) -> None:
    machine.addresses6["eth2"] = "fe80::1%eth2"
    assert nova.settings_from({"FLAT_INTERFACE": "eth2"}).FLAT_INTERFACE == "eth2"


def test_an_interface_that_is_in_use_is_refused(machine: Machine) -> None:
    assert refused({"FLAT_INTERFACE": "eth9"}) == "FLAT_INTERFACE=eth9: this machine has lo, eth0, eth1, eth2"
    assert refused({"FLAT_INTERFACE": "eth0"}) == "FLAT_INTERFACE=eth0: it carries the default route"
    assert refused({"FLAT_INTERFACE": "eth1"}) == "FLAT_INTERFACE=eth1: it has the address 198.51.100.7"
    machine.addresses6["eth2"] = "2001:db8::1"
    assert refused({"FLAT_INTERFACE": "eth2"}) == "FLAT_INTERFACE=eth2: it has the address 2001:db8::1"
    del machine.addresses6["eth2"]
    machine.put("/proc/net/ipv6_route", DEFAULT6.replace("eth0", "eth2"))
    assert refused({"FLAT_INTERFACE": "eth2"}) == "FLAT_INTERFACE=eth2: it carries the default route"


@pytest.mark.parametrize(("master", "free"), [("br0", False), ("ovs-system", True)])
def test_an_interface_in_a_bridge_is_refused_but_not_in_a_running_clouds(machine: Machine, master: str, free: bool) -> None:
    machine.path("/sys/class/net/eth2").mkdir(parents=True)
    machine.path("/sys/class/net/eth2/master").symlink_to(f"../{master}")
    if free:
        assert nova.settings_from({"FLAT_INTERFACE": "eth2"})
    else:
        assert refused({"FLAT_INTERFACE": "eth2"}) == "FLAT_INTERFACE=eth2: it is in br0 already"


@pytest.mark.parametrize("name", ["all", "default"])
def test_ipv6_is_refused_where_the_kernel_has_it_switched_off(machine: Machine, name: str) -> None:
    path = machine.put(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "1\n")
    message = f"USE_IPV6=1: IPv6 is switched off in this kernel (net.ipv6.conf.{name}.disable_ipv6)"
    assert refused({"USE_IPV6": "1"}) == message
    path.unlink()
    assert refused({"USE_IPV6": "1"}) == message
    assert not nova.settings_from({"USE_IPV6": "0"}).USE_IPV6


def test_ipv6_is_refused_where_the_prefix_is_in_use(machine: Machine) -> None:
    route = f"fd6e6f766170{'0' * 20} 40 {'0' * 32} 00 {'0' * 32} 00000100 00000001 00000000 00000001     eth1\n"
    machine.put("/proc/net/ipv6_route", TO_ITSELF + DEFAULT6 + route)
    assert (
        refused({"USE_IPV6": "1"})
        == "FIXED_RANGE_V6=fd6e:6f76:6170::/48: this machine has a route to fd6e:6f76:6170::/64 through eth1"
    )
    machine.put("/proc/net/ipv6_route", machine.path("/proc/net/ipv6_route").read_text().replace("eth1", "br-ex"))
    assert nova.settings_from({"USE_IPV6": "1"}).USE_IPV6


# ---- What the APIs are asked for ----


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> MagicMock:
    """neutron, which grants everything; the router has an address of each family."""
    admin = MagicMock()
    admin.network.create_network.side_effect = lambda name, **_: SimpleNamespace(id=f"id of {name}", name=name)
    addresses = [{"ip_address": "10.6.0.2"}, {"ip_address": "fd6e:6f76:6170:1::9"}]
    admin.network.create_router.return_value.external_gateway_info = {"external_fixed_ips": addresses}
    admin.network.routers.side_effect = lambda name: iter([admin.network.create_router.return_value])
    monkeypatch.setattr(nova, "cloud", MagicMock(return_value=admin))
    fake("ip")
    return admin.network  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("manager", "promise"),
    [("VlanManager", ("vlan", False, True)), ("FlatDHCPManager", ("flat", True, True)), ("FlatManager", ("flat", True, False))],
)
def test_private_is_as_its_manager_promises(
    cfg: nova.Settings, network: MagicMock, manager: str, promise: tuple[str, bool, bool]
) -> None:
    kind, shared, dhcp = promise
    cfg = dataclasses.replace(cfg, NET_MAN=manager)
    nova.create_networks(cfg)
    private = network.create_network.call_args.kwargs
    assert (private["provider_physical_network"], private["provider_network_type"]) == ("fixed", kind)
    assert private.get("is_shared", False) == shared
    subnet = network.create_subnet.call_args.kwargs
    assert (subnet["cidr"], subnet["is_dhcp_enabled"]) == ("10.0.0.0/24", dhcp)
    assert subnet["allocation_pools"] == [{"start": "10.0.0.2", "end": "10.0.0.253"}], "the last is this machine's own"
    assert nova.values(cfg)["CONFIG_DRIVE"] == str(not dhcp)
    assert "genisoimage" in nova.services(cfg)["nova"].packages  # whoever asks for a config drive has one


def test_ipv6_subnets_come_with_their_route(cfg: nova.Settings, network: MagicMock, machine: Machine) -> None:
    nova.create_networks(dataclasses.replace(cfg, USE_IPV6=True))
    asked = [call.kwargs for call in network.create_subnet.call_args_list]
    assert [a["cidr"] for a in asked] == ["10.6.0.0/27", "10.0.0.0/24", "fd6e:6f76:6170:1::/64", "fd6e:6f76:6170::/64"]
    assert [a["ip_version"] for a in asked] == [4, 4, 6, 6]
    names = ["public-subnet", "private-subnet", "ipv6-public-subnet", "ipv6-private-subnet"]
    assert [a["name"] for a in asked] == names
    assert asked[3]["ipv6_ra_mode"] == asked[3]["ipv6_address_mode"] == "slaac"
    assert network.add_interface_to_router.call_count == 2
    assert machine.called() == ["ip -6 route replace fd6e:6f76:6170::/64 via fd6e:6f76:6170:1::9 dev br-ex"]


ROUTE = "eth1\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n"


@pytest.mark.parametrize(
    "case",
    [
        ("", "10.0.0.0/24", "10.240.0.0/16"),
        ("", "10.240.7.0/24", "172.28.0.0/16"),
        (ROUTE.format("0000000A", "000000FF"), "10.0.0.0/24", "172.28.0.0/16"),
        (ROUTE.format("0000000A", "000000FF").replace("eth1", "br100"), "10.0.0.0/24", "10.240.0.0/16"),
    ],
    ids=["default", "FIXED_RANGE", "a route of the machine", "a route of a cloud"],
)
def test_networks_of_projects_are_where_nobody_else_is(
    cfg: nova.Settings, network: MagicMock, machine: Machine, case: tuple[str, str, str]
) -> None:
    routes, fixed, pool = case
    table = machine.path("/proc/net/route")
    machine.put("/proc/net/route", table.read_text() + routes)
    nova.create_networks(dataclasses.replace(cfg, FIXED_RANGE=fixed))
    asked = network.create_subnet_pool.call_args.kwargs
    assert (asked["prefixes"], asked["is_default"], asked["is_shared"]) == ([pool], True, True)
    public = network.create_network.call_args_list[0].kwargs
    assert (public["name"], public["is_default"], public["is_router_external"]) == ("public", True, True)


def test_ping_and_ssh_come_in_over_both(cfg: nova.Settings, network: MagicMock) -> None:
    nova.create_networks(cfg)
    (rules,) = network.create_security_group_rules.call_args.args
    assert {(r["ether_type"], r["protocol"], r.get("port_range_min")) for r in rules} == {
        ("IPv4", "icmp", None), ("IPv6", "ipv6-icmp", None), ("IPv4", "tcp", 22), ("IPv6", "tcp", 22),
    }  # fmt: skip


# ---- What the machine is asked for, and what is recorded ----


@pytest.fixture
def bridged(fake: Fake, machine: Machine) -> Machine:
    """A machine on which bridges can be made; every kernel parameter is 1."""
    for name in ("ovs-vsctl", "ip", "nft", "modprobe"):
        fake(name)
    fake("sysctl", '[ "$1" != -n ] || echo 1')
    return machine


@pytest.mark.parametrize(("manager", "here"), [("VlanManager", False), ("FlatDHCPManager", True), ("FlatManager", True)])
def test_this_machine_is_on_a_flat_network(cfg: nova.Settings, bridged: Machine, manager: str, here: bool) -> None:
    nova.create_bridges(dataclasses.replace(cfg, NET_MAN=manager))
    assert ("ip address replace 10.0.0.254/24 dev br100" in bridged.called()) == here


@pytest.mark.parametrize(
    ("flags", "was"), [("0x1003", "up promisc off"), ("0x1002", "down promisc off"), ("0x1103", "up promisc on")]
)
def test_a_spare_interface_joins_and_is_given_back(
    cfg: nova.Settings, bridged: Machine, fake: Fake, flags: str, was: str
) -> None:
    fake("sysctl", '[ "$1" != -n ] || echo 0')
    bridged.put("/sys/class/net/eth2/flags", flags + "\n")
    nova.create_bridges(dataclasses.replace(cfg, FLAT_INTERFACE="eth2"))
    calls = bridged.called()
    first = calls.index("sysctl -qw net/ipv6/conf/eth2/disable_ipv6=1")
    assert calls[first + 1 : first + 3] == [
        "ip link set eth2 up", "ovs-vsctl --db=unix:/run/nova.py/state/ovs/db.sock add-port br100 eth2",
    ]  # fmt: skip
    assert recorded()[2:4] == [f"ip link set eth2 {was}", "sysctl -qw net/ipv6/conf/eth2/disable_ipv6=0"]


def test_routers_that_were_heard_are_heard_before_forwarding_is_on(cfg: nova.Settings, bridged: Machine, fake: Fake) -> None:
    fake("sysctl", 'case "$*" in "-n "*accept_ra) echo 1;; -n*) echo 0;; esac')
    bridged.put("/proc/net/ipv6_route", TO_ITSELF + DEFAULT6)
    for name, value in (("all", 0), ("eth0", 0), ("eth1", 1)):
        bridged.put(f"/proc/sys/net/ipv6/conf/{name}/forwarding", f"{value}\n")
    nova.create_bridges(dataclasses.replace(cfg, USE_IPV6=True))
    assert recorded()[-4:] == [
        "sysctl -qw net/ipv6/conf/eth0/accept_ra=1",
        "sysctl -qw net/ipv6/conf/eth1/forwarding=1",
        "nft delete table ip6 nova_py",
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
    ]
    calls = bridged.called()
    assert calls.index("sysctl -qw net/ipv6/conf/eth0/accept_ra=2") < calls.index("sysctl -qw net.ipv6.conf.all.forwarding=1")
    assert calls[-1] == "ip address replace fd6e:6f76:6170:1::1/64 dev br-ex nodad"


def test_without_ipv6_nothing_of_it_is_touched(cfg: nova.Settings, bridged: Machine) -> None:
    nova.create_bridges(cfg)
    assert not [call for call in bridged.called() if "forwarding" in call or "ip6" in call or "nodad" in call]


@pytest.mark.parametrize("value", ["fd00::1/48", "fd00::/64", "10.0.0.0/24", "six"])
def test_fixed_range_v6_is_at_least_two_networks(value: str) -> None:
    assert refused({"USE_IPV6": "1", "FIXED_RANGE_V6": value}).startswith(
        f"FIXED_RANGE_V6={value}: not a range of IPv6 networks ("
    )


@pytest.mark.parametrize("routers", [[], [MagicMock(external_gateway_info=None)]])
def test_a_router_that_a_user_deleted_stops_no_start(
    cfg: nova.Settings, network: MagicMock, machine: Machine, routers: list[MagicMock]
) -> None:
    network.routers.side_effect = lambda name: iter(routers)
    nova.route_private(dataclasses.replace(cfg, USE_IPV6=True))
    assert machine.called() == []
