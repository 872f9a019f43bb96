# SPDX-License-Identifier: Apache-2.0
"""neutron's extensions, each used once as its users would: what an instance, this machine or another project sees of it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import openstack
import pytest

from .conftest import Machine, ask, eventually, on

pytestmark = on("vlan")
# A subport's frames have a tag; the guest's kernel knows tags by a module.
USE_TAGS = "cd /lib/modules && for name in llc stp garp mrp 8021q; do insmod $name.ko; done 2>/dev/null; cd /"
SECONDS = 3  # for which a speed is measured
LIMIT = 1000  # kbit/s


class Two(NamedTuple):
    """ext-private, an instance on `private` whose port is a trunk's parent, and ext-tagged on the network `tagged`."""

    floating: str  # ext-private's address from outside
    port: Any
    subport: Any
    tagged: str  # ext-tagged's fixed address


@pytest.fixture(scope="module")
def connection(cloud: Machine) -> Any:
    """The cloud's APIs, as admin."""
    files = openstack.config.OpenStackConfig(config_files=[f"{cloud.folder}/nova/clouds.yaml"], load_envvars=False)
    return openstack.connection.Connection(config=files.get_one("nova"))


@pytest.fixture(scope="module")
def network(connection: Any) -> Any:
    """neutron, as admin."""
    return connection.network


@pytest.fixture(scope="module")
def two(cloud: Machine, connection: Any) -> Iterator[Two]:
    """The two instances, and what they need; all of it is deleted at the end."""
    network, compute = connection.network, connection.compute
    with contextlib.ExitStack() as end:
        private, public = network.find_network("private"), network.find_network("public")
        tagged = network.create_network(name="tagged", dns_domain="tagged.test.")
        end.callback(network.delete_network, tagged)
        network.create_subnet(name="tagged", network_id=tagged.id, ip_version=4, cidr="10.77.1.0/24")
        ports = [network.create_port(name=f"ext-{place.name}", network_id=place.id) for place in (private, tagged)]
        subport = network.create_port(name="subport", network_id=tagged.id)
        for port in (*ports, subport):
            end.callback(network.delete_port, port)
        trunk = network.create_trunk(name="trunk", port_id=ports[0].id)
        end.callback(network.delete_trunk, trunk)
        network.add_trunk_subports(trunk, [{"port_id": subport.id, "segmentation_type": "vlan", "segmentation_id": 5}])
        image, known = connection.image.find_image("ami-tty"), {"flavor_id": "1", "key_name": "mine"}
        for port in ports:
            server = compute.create_server(name=port.name, image_id=image.id, networks=[{"port": port.id}], **known)
            end.callback(compute.wait_for_delete, server)
            end.callback(compute.delete_server, server)
        floating = network.create_ip(floating_network_id=public.id, port_id=ports[0].id)
        end.callback(network.delete_ip, floating)
        at = floating.floating_ip_address
        eventually("ssh to ext-private", lambda: cloud.ssh(at, "hostname") == "ext-private", 120)
        yield Two(at, ports[0], subport, ports[1].fixed_ips[0]["ip_address"])


@pytest.fixture(scope="module")
def newcomer(cloud: Machine) -> Iterator[str]:
    """A project that has nothing, and in it a user: the line that makes a shell that user's."""
    cloud.shell("openstack project create newcomer && openstack user create --project newcomer --password new newcomer")
    cloud.shell("openstack role add --project newcomer --user newcomer member")
    yield "export OS_PROJECT_NAME=newcomer OS_USERNAME=newcomer OS_PASSWORD=new; "
    cloud.shell("openstack project purge --project newcomer; openstack user delete newcomer")


# ---- What instances see ----


def test_a_subport_is_a_vlan_in_the_guest(cloud: Machine, network: Any, two: Two) -> None:
    """Ping, TCP, whose segments have a tag and unfinished checksums, and the names of the subport's network."""
    address, link = two.subport.fixed_ips[0]["ip_address"], f"eth0.5 address {two.subport.mac_address} type vlan id 5"
    cloud.ssh(two.floating, f"{USE_TAGS}; ip link add link eth0 name {link} && ip link set eth0.5 up")
    cloud.ssh(two.floating, f"ip address replace {address}/24 dev eth0.5")
    eventually("a ping over the subport", lambda: cloud.reaches(two.floating, two.tagged), 60)
    eventually("TCP", lambda: "SSH-2.0" in cloud.ssh(two.floating, f"nc -w 5 {two.tagged} 22 </dev/null"))
    # ovn-controller answers, whoever is asked
    said = cloud.ssh(two.floating, f"nslookup -type=a ext-tagged.tagged.test {two.tagged}")
    assert f"Address: {two.tagged}" in said
    trunk = network.find_trunk("trunk")
    assert (trunk.status, [part["segmentation_id"] for part in trunk.sub_ports]) == ("ACTIVE", [5])
    network.delete_trunk_subports(trunk, [{"port_id": two.subport.id}])
    eventually("the subport's end", lambda: not cloud.reaches(two.floating, two.tagged), 30)


def test_instances_are_found_by_name(cloud: Machine, network: Any, two: Two) -> None:
    address = two.port.fixed_ips[0]["ip_address"]
    for name in ("ext-private", "ext-private.novalocal"):
        assert f"Address: {address}" in cloud.ssh(two.floating, f"nslookup -type=a {name}")
    port = network.create_port(network_id=two.port.network_id, dns_name="of-mine")
    assert port.dns_name == "of-mine"
    assert [each["fqdn"] for each in port.dns_assignment] == ["of-mine.novalocal."]
    network.delete_port(port)


@contextlib.contextmanager
def server(data: bytes) -> Iterator[tuple[int, list[int]]]:
    """A TCP port of this machine, and how many bytes it has received; a client is sent `data` until it goes, if there is any."""
    received = [0]

    def serve() -> None:
        with contextlib.suppress(OSError):
            client, _ = listening.accept()
            while data:
                client.sendall(data)
            while part := client.recv(1 << 16):
                received[0] += len(part)

    with socket.create_server(("", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1], received


def speed(cloud: Machine, two: Two, direction: str) -> float:
    """kbit/s of TCP from ext-private to this machine, or back."""
    here = ask("ip", "-4", "-oneline", "address", "show", "dev", "br-ex").split()[3].partition("/")[0]
    with server(bytes(1 << 16) if direction == "ingress" else b"") as (port, received):
        if direction == "ingress":
            size = int(cloud.ssh(two.floating, f"timeout {SECONDS} nc {here} {port} </dev/null 2>/dev/null | wc -c"))
        else:
            cloud.ssh(two.floating, f"timeout {SECONDS} nc {here} {port} </dev/zero || true")
            size = received[0]
    return size * 8 / 1000 / SECONDS


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_a_bandwidth_limit_limits(cloud: Machine, network: Any, two: Two, direction: str) -> None:
    """And without one there is more, for which segments that are longer than the MTU have to pass the router."""
    free = speed(cloud, two, direction)
    policy = network.create_qos_policy(name=direction)
    try:
        network.create_qos_bandwidth_limit_rule(policy, max_kbps=LIMIT, max_burst_kbps=LIMIT // 10, direction=direction)
        network.update_port(two.port, qos_policy_id=policy.id)
        eventually("the limit", lambda: speed(cloud, two, direction) < LIMIT * 1.5, 30)
        limited = speed(cloud, two, direction)
    finally:
        network.update_port(two.port, qos_policy_id=None)
        network.delete_qos_policy(policy)
    assert LIMIT / 20 < limited < LIMIT * 1.5, free
    assert free > 3 * LIMIT
    eventually("its end", lambda: speed(cloud, two, direction) > 3 * LIMIT, 30)


def test_a_forwarded_port_answers(network: Any, two: Two) -> None:
    """To an instance without a floating address of its own, behind the router."""
    router, tagged = network.find_router("router"), network.find_network("tagged")
    (subnet,), (port,) = tagged.subnet_ids, network.ports(name="ext-tagged")
    network.add_interface_to_router(router, subnet_id=subnet)
    floating = network.create_ip(floating_network_id=network.find_network("public").id)
    which = {"internal_port_id": port.id, "internal_ip_address": two.tagged, "internal_port": 22}
    forwarding = network.create_floating_ip_port_forwarding(floating, external_port=2222, protocol="tcp", **which)

    def greeting() -> str:
        with socket.create_connection((floating.floating_ip_address, 2222), timeout=5) as client:
            return client.recv(99).decode(errors="replace")

    try:
        assert "SSH-2.0-dropbear" in eventually("the forwarded port", greeting)
    finally:
        network.delete_floating_ip_port_forwarding(floating, forwarding)
        network.delete_ip(floating)
        network.remove_interface_from_router(router, subnet_id=subnet)


def test_what_a_security_group_drops_is_logged(cloud: Machine, network: Any, two: Two) -> None:
    group = network.find_security_group("default", project_id=two.port.project_id)
    body = {"name": "drops", "resource_type": "security_group", "resource_id": group.id, "event": "DROP"}
    made = network.post("/log/logs", json={"log": body}).json()["log"]
    log = cloud.folder / "nova/state/log/ovn.log"

    def seen() -> list[str]:
        with contextlib.suppress(OSError):
            socket.create_connection((two.floating, 23), timeout=1)
        return re.findall(r'acl_log.*name="neutron-' + made["id"] + r'", verdict=drop.*tp_dst=23', log.read_text())

    try:
        eventually("the log", seen, 30)
    finally:
        network.delete(f"/log/logs/{made['id']}")


def test_a_stateless_group_lets_in_whom_an_address_group_names(cloud: Machine, network: Any, two: Two) -> None:
    """Its replies are let out as well, by rules of their own; whoever is not in the address group is not let in."""
    here = ask("ip", "-4", "-oneline", "address", "show", "dev", "br-ex").split()[3].partition("/")[0]
    addresses = network.create_address_group(name="here", addresses=[f"{here}/32"])
    group = network.create_security_group(name="stateless", stateful=False)
    rule = {"security_group_id": group.id, "direction": "ingress", "ether_type": "IPv4", "protocol": "icmp"}
    pinged = lambda: " 0% packet loss" in ask("ping", "-c1", "-W1", two.floating)
    try:
        assert not group.stateful
        network.update_port(two.port, security_groups=[group.id])
        eventually("nobody comes in", lambda: not pinged(), 30)
        network.create_security_group_rule(**rule, remote_address_group_id=addresses.id)
        eventually("a ping from here", pinged, 30)
        network.remove_addresses_from_address_group(addresses, [f"{here}/32"])
        eventually("nobody comes in", lambda: not pinged(), 30)
    finally:
        default = network.find_security_group("default", project_id=two.port.project_id)
        network.update_port(two.port, security_groups=[default.id])
        network.delete_security_group(group)
        network.delete_address_group(addresses)


def test_a_project_without_a_network_gets_one_with_its_first_server(cloud: Machine, newcomer: str) -> None:
    """Without a word about networks; the way out is there as well, and all of it is deleted by one command."""
    server = "openstack server create --image ami-tty --flavor m1.tiny --wait -f value -c status -c addresses one"
    said = cloud.shell(newcomer + server)
    assert "ACTIVE" in said and "auto_allocated_network" in said
    assert cloud.shell(newcomer + "openstack router list -f value -c Name") == "auto_allocated_router"
    cloud.shell(newcomer + "openstack server delete --wait one && openstack network auto allocated topology delete")
    assert cloud.shell(newcomer + "openstack network list -f value -c Name") == "public"


# ---- What the API tells ----


def test_networks_come_from_a_range_of_the_projects_own(network: Any, connection: Any) -> None:
    (default,) = (each for each in network.network_segment_ranges() if each.default)
    assert (default.network_type, default.physical_network, default.minimum, default.maximum) == ("vlan", "fixed", 100, 4094)
    own = {"shared": False, "project_id": connection.current_project_id, "network_type": "vlan"}
    ours = network.create_network_segment_range(name="ours", physical_network="fixed", minimum=3000, maximum=3001, **own)
    made = network.create_network(name="ranged")
    try:
        assert made.provider_segmentation_id in (3000, 3001)
        (segment,) = network.segments(network_id=made.id)
        assert (segment.network_type, segment.segmentation_id) == ("vlan", made.provider_segmentation_id)
    finally:
        network.delete_network(made)
        network.delete_network_segment_range(ours)
    (private,) = network.segments(network_id=network.find_network("private").id)
    assert private.segmentation_id == 100


def test_what_a_port_is_given_it_has(network: Any) -> None:
    """Uplink status, and tags, by which it is found; also where it is made together with others."""
    private = network.find_network("private")
    names = [{"network_id": private.id, "name": name, "tags": [f"of-{name}"]} for name in ("a", "b")]
    ports = list(network.create_ports(names))
    try:
        (found,) = network.ports(tags="of-b")
        assert (found.id, found.name) == (ports[1].id, "b")
        for on in (False, True):
            changed = network.update_port(found, propagate_uplink_status=on)
            assert network.get_port(changed.id).propagate_uplink_status == on
        network.set_tags(found, ["mine"])
        assert [port.id for port in network.ports(tags="mine")] == [found.id]
    finally:
        for port in ports:
            network.delete_port(port)


def test_a_network_is_shared_with_one_project(cloud: Machine, network: Any, connection: Any, newcomer: str) -> None:
    seen = lambda: cloud.shell(newcomer + "openstack network list -f value -c Name").split()
    assert "private" not in seen()
    project, private = connection.identity.find_project("newcomer"), network.find_network("private")
    target = {"target_project_id": project.id, "object_id": private.id}
    policy = network.create_rbac_policy(action="access_as_shared", object_type="network", **target)
    assert "private" in seen()
    network.delete_rbac_policy(policy)
    assert "private" not in seen()
