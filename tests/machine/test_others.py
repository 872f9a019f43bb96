"""A machine that somebody uses already: all verbs in turn, and every thing of theirs is as it was."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import NOVA_PY, Machine, ask, eventually

pytestmark = pytest.mark.slow

# Theirs as well as ours: servers of the same packages, which a cloud's must not meet.
PACKAGES = "mariadb-server-core mariadb-client-core rabbitmq-server libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"
PACKAGES += " qemu-system-x86 openvswitch-switch dnsmasq-base nftables iptables iproute2 screen"

NETWORK = """<network><name>theirs</name><forward mode="nat"/><bridge name="virbr7"/>
<ip address="10.77.100.65" netmask="255.255.255.192"><dhcp><range start="10.77.100.70" end="10.77.100.80"/></dhcp></ip>
</network>"""
DOMAIN = """<domain type="qemu"><name>theirs</name><memory unit="MiB">64</memory><vcpu>1</vcpu>
<os><type arch="x86_64">hvm</type></os><devices><interface type="network"><source network="theirs"/>
<model type="virtio"/></interface></devices></domain>"""

# their-tap has a name like ours, and a MAC address as neutron gives them everywhere
SETUP = """
ip link add their-br type bridge
ip address add 10.77.113.65/26 dev their-br
ip link set their-br up
ip link add their-veth type veth peer name their-peer
ip link set their-peer master their-br
ip tuntap add tap7e1e2e3e-99 mode tap
ip link set tap7e1e2e3e-99 address fa:16:3e:00:00:99 up
ip route add 10.77.113.0/26 via 10.77.113.66 dev their-br
nft add table inet theirs
nft add chain inet theirs input { type filter hook input priority 5 ; }
nft add rule inet theirs input ip saddr 10.77.113.9 counter drop
iptables -A INPUT -s 10.77.113.10 -j DROP
iptables -t nat -A POSTROUTING -s 10.77.113.11 -j MASQUERADE
screen -d -m -S theirs sleep 100000
screen -d -m -S nova2 sleep 100000
"""
TAKEN_BACK = """
screen -S theirs -X quit
screen -S nova2 -X quit
iptables -t nat -D POSTROUTING -s 10.77.113.11 -j MASQUERADE
iptables -D INPUT -s 10.77.113.10 -j DROP
nft delete table inet theirs
ip link delete tap7e1e2e3e-99
ip link delete their-veth
ip link delete their-br
"""


def call(*words: str, **options: Any) -> str:
    """A command that must work; what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise subprocess.SubprocessError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def link_state(name: str) -> list[Any]:
    """What somebody gave to an interface: what comes and goes with a neighbour is not asked for."""
    link = json.loads(call("ip", "-j", "address", "show", name))[0]
    given = [link.get(key) for key in ("ifname", "address", "mtu", "master", "txqlen")]
    return [*given, "UP" in link["flags"], [each["local"] for each in link["addr_info"] if each["family"] == "inet"]]


class Others:
    """Somebody's things on this machine, and how each is now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[psutil.Process] = []
        self.vlan = False

    def start(self, *words: str, env: dict[str, str] | None = None) -> None:
        """A server of theirs."""
        with open(self.folder / f"{Path(words[0]).name}.log", "ab") as log:
            options: Any = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            done = subprocess.Popen(words, env={**os.environ, **(env or {})}, **options)
        self.processes.append(psutil.Process(done.pid))

    def set_up(self) -> None:
        for line in filter(None, SETUP.splitlines()):
            call(*line.split())
        vlan = ("ip", "link", "add", "link", "their-br", "name", "their.7", "type", "vlan", "id", "7")
        made = subprocess.run(vlan, check=False, capture_output=True)
        self.vlan = made.returncode == 0  # not every kernel has 802.1Q
        data = self.folder / "mysql"
        call(
            "mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--auth-root-authentication-method=socket"
        )
        self.start("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={data}/sock", "--port=3306",
                   f"--pid-file={data}/pid", "--bind-address=127.0.0.1")  # fmt: skip
        self.start("dnsmasq", "--keep-in-foreground", "--port=5353", "--listen-address=127.0.0.1", "--bind-interfaces",
                   "--conf-file=/dev/null", f"--pid-file={self.folder}/dnsmasq.pid")  # fmt: skip
        places = {"MNESIA_BASE": "mnesia", "LOG_BASE": "log", "ENABLED_PLUGINS_FILE": "plugins", "CONFIG_FILE": "conf"}
        self.rabbit = {f"RABBITMQ_{name}": str(self.folder / "rabbit" / place) for name, place in places.items()}
        self.rabbit |= {"RABBITMQ_NODENAME": "theirs@localhost", "HOME": str(self.folder / "rabbit")}
        (self.folder / "rabbit").mkdir()
        self.start("/usr/lib/rabbitmq/bin/rabbitmq-server", env=self.rabbit)
        self.start("virtlogd")
        self.start("libvirtd")
        eventually("their libvirtd", lambda: call("virsh", "list"))
        for verb, text in (("net-create", NETWORK), ("create", DOMAIN)):
            (self.folder / "it.xml").write_text(text)
            call("virsh", verb, str(self.folder / "it.xml"))
        eventually("their MariaDB", lambda: self.asked_of_mariadb("CREATE DATABASE IF NOT EXISTS theirs; SELECT 1"))
        eventually("their RabbitMQ", lambda: {"4369", "5672"} <= self.ports(), 120)

    def asked_of_mariadb(self, query: str) -> str:
        return call("mariadb", "--no-defaults", f"--socket={self.folder}/mysql/sock", "-N", "-e", query)

    def ports(self) -> set[str]:
        """Listening ports of everybody below those that clouds use."""
        return set(re.findall(r":(3306|4369|5672|5353)\s", ask("ss", "-Hltn")))

    def lasting(self) -> list[tuple[int, float]]:
        """Their processes, but for the helpers that RabbitMQ starts and ends as it likes."""
        those = self.ours()
        helpers = {child for each in those if each.name() == "erl_child_setup" for child in each.children(recursive=True)}
        return sorted((each.pid, each.create_time()) for each in those if each not in helpers)

    def ours(self) -> list[psutil.Process]:
        """Every process of theirs, with what they started; epmd and libvirt's went to process 1."""
        alike = [each for each in psutil.process_iter(["cmdline"]) if self.is_theirs(each)]
        running = [each for each in self.processes if each.is_running()]
        found = {each.pid: each for one in running for each in (one, *one.children(recursive=True))}
        return list({**found, **{each.pid: each for each in alike}}.values())

    def is_theirs(self, process: psutil.Process) -> bool:
        line = " ".join(process.info["cmdline"] or [])
        return bool(
            re.search(r"guest=theirs,|/theirs\.conf|SCREEN .*-S (theirs|nova2) |SCREEN -d -m -S (theirs|nova2)", line)
        ) or (
            line.startswith("/usr/lib/erlang/")
            and "epmd" in line
            and process.environ().get("RABBITMQ_NODENAME") == "theirs@localhost"
        )

    def now(self) -> dict[str, Any]:
        """How each of their things is."""
        links = ["their-br", "their-veth", "their-peer", "tap7e1e2e3e-99", "virbr7", *["their.7"] * self.vlan]
        of_rabbit = {"env": {**os.environ, **self.rabbit}}
        return {
            "processes": self.lasting(),
            "links": [link_state(name) for name in links],
            "routes": sorted(re.findall("^.*?(?:their-br|virbr7)", call("ip", "route"), re.M)),
            "nftables": call("nft", "--stateless", "list", "table", "inet", "theirs"),
            "iptables": [line for table in ("filter", "nat") for line in call("iptables", "-t", table, "-S").splitlines()],
            "bridge": sorted(path.name for path in Path("/sys/class/net/their-br/brif").iterdir()),
            "domains": call("virsh", "list", "--all", "--uuid") + call("virsh", "domstate", "theirs"),
            "networks": call("virsh", "net-list", "--all"),
            "databases": self.asked_of_mariadb("SHOW DATABASES"),
            "messages": call("/usr/lib/rabbitmq/bin/rabbitmqctl", "-n", "theirs@localhost", "-q", "list_queues", **of_rabbit),
            "ports": self.ports(),
            "sessions": re.findall(r"\d+\.(?:theirs|nova2)\b", ask("screen", "-ls")),
        }  # fmt: skip

    def take_away(self) -> None:
        """End and remove all of it."""
        for words in (("destroy", "theirs"), ("net-destroy", "theirs")):
            subprocess.run(["virsh", *words], check=False, capture_output=True)
        for line in filter(None, TAKEN_BACK.splitlines()):
            subprocess.run(line.split(), check=False, capture_output=True)
        for each in reversed(theirs := self.ours()):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with the one before
                each.terminate()
        for each in psutil.wait_procs(theirs, timeout=20)[1]:
            each.kill()


@pytest.fixture(scope="module")
def others(machine: Machine) -> Iterator[Others]:
    """Their things, on a machine of which nova.py knows nothing yet."""
    words = ("python3", str(NOVA_PY), "uninstall", "--keep-cache")
    subprocess.run(words, cwd=machine.folder, check=False)  # earlier tests' install; where it finds the machine changed:
    shutil.rmtree("/var/lib/nova.py", ignore_errors=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if any(not shutil.which(name) for name in ("mariadbd", "virsh", "dnsmasq", "ovs-vswitchd", "nft", "iptables", "screen")):
        call("apt-get", "-qq", "update")
        call("apt-get", "-qq", "install", "-y", "--no-install-recommends", *PACKAGES.split(), env=quiet)
    folder = machine.folder / "others"
    folder.mkdir()
    them = Others(folder)
    try:
        them.set_up()
        yield them
    finally:
        them.take_away()


@pytest.mark.parametrize("verb", ["install", "run_detached", "status", "terminate", "clean"])
def test_each_thing_of_theirs_is_as_it_was(machine: Machine, others: Others, verb: str) -> None:
    before = others.now()
    assert before["domains"] and before["ports"] == {"3306", "4369", "5672", "5353"} and len(before["sessions"]) == 2
    assert len(before["processes"]) > 6
    machine.nova(verb)
    assert others.now() == before
    if verb == "run_detached":
        assert machine.openstack("network list")


def test_scrub_leaves_a_bridge_of_theirs_that_has_the_name_of_one_of_ours(machine: Machine, others: Others) -> None:
    """A cloud has ended; its bridge is removed by hand, and somebody makes one of the same name."""
    assert "br-int" in ask("ip", "-br", "link"), "clean leaves them to scrub"
    call("ip", "link", "delete", "br-ex")
    call("ip", "link", "add", "br-ex", "type", "bridge")
    try:
        before = others.now()
        machine.nova("scrub")
        assert others.now() == before
        links = ask("ip", "-br", "link")
        assert "br-ex" in links and "br-int" not in links and "ovs-netdev" not in links
        assert "this machine has an interface br-ex, and" in machine.nova("run_detached", ok=1)
    finally:
        call("ip", "link", "delete", "br-ex")


def test_a_port_of_theirs_that_we_want_is_named(machine: Machine, others: Others) -> None:
    before = others.now()
    with socket.create_server(("127.0.0.1", 9292)):
        assert re.search(r"port 9292 is in use by \w+, pid " + str(os.getpid()), machine.nova("run_detached", ok=1))
    assert others.now() == before


def test_an_open_vswitch_of_theirs_is_named_and_left_alone(machine: Machine, others: Others) -> None:
    """Two of them would make the same device (ovs-netdev, ovs-system), so one machine has one."""
    place = others.folder / "ovs"
    place.mkdir()
    own = {"OVS_RUNDIR": str(place), "OVS_LOGDIR": str(place), "OVS_DBDIR": str(place)}
    database = f"unix:{place}/db.sock"
    call("ovsdb-tool", "create", str(place / "conf.db"), "/usr/share/openvswitch/vswitch.ovsschema")
    others.start("ovsdb-server", f"--remote=p{database}", f"--unixctl={place}/db.ctl", str(place / "conf.db"), env=own)
    others.start("ovs-vswitchd", f"--unixctl={place}/v.ctl", database, env=own)
    bridge = ("add-br", "their-ovs", "--", "set", "Bridge", "their-ovs", "datapath_type=netdev")
    eventually(
        "their bridge", lambda: call("ovs-vsctl", "--timeout=10", f"--db={database}", "--may-exist", *bridge) or "made", 30
    )
    look = lambda: (others.now(), call("ovs-vsctl", f"--db={database}", "show"), ask("ip", "-br", "link", "show", "type", "tun"))
    before = look()
    assert "their-ovs" in before[2] and "ovs-netdev" in before[2]
    said = machine.nova("run_detached", ok=1)
    assert "this machine has an interface ovs-netdev" in said and "ovs-vswitchd" in said
    for verb in ("terminate", "clean", "scrub"):
        machine.nova(verb)
    assert look() == before


def test_uninstall_leaves_them_and_finds_the_machine_as_it_was(machine: Machine, others: Others) -> None:
    switch = [each for each in others.processes if each.name() in ("ovs-vswitchd", "ovsdb-server")]  # the last test's
    for each in reversed(switch):
        others.processes.remove(each)
        each.terminate()
        each.wait(20)
    for name in {"their-ovs", "ovs-netdev"} & {path.name for path in Path("/sys/class/net").iterdir()}:
        call("ip", "link", "delete", name)
    before = others.now()
    machine.nova("uninstall", "--keep-cache")
    assert others.now() == before
