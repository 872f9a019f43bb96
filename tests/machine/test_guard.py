# SPDX-License-Identifier: Apache-2.0
"""Let no one in: who runs as whom, who listens where, who holds secrets, who may guess, and what an instance reaches."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import FAR, GUEST_USER, PRIVSEP_GROUP, USER, Machine, eventually, on

pytestmark = on("vlan")

# What is root's among the cloud's processes: its windows, what wires networks and starts instances, and what becomes
# OpenStack's services when it has given up being root; none of these.
ROOTS = {"screen", "bash", "keep", "sleep", "ovs-vswitchd", "ovn-controller", "libvirtd", "virtlogd", "tgtd", "iscsid"}
ROOTS |= {"tini", "preload", "preload-nova", "preload-net", "sh", "ksm"}
# privsep's helpers, and the capabilities that each keeps, by their numbers in capabilities(7).
HELPERS = {
    "nova.privsep.sys_admin_pctxt": {0, 1, 2, 3, 12, 21},
    "cinder.privsep.sys_admin_pctxt": {0, 1, 2, 3, 12, 21},
    "vif_plug_ovs.privsep.vif_plug": {1, 12},
    "os_brick.privileged.default": {2, 21},
    "neutron.privileged.default": {1, 2, 12, 19, 21},
    "neutron.privileged.namespace_cmd": {21},
    "neutron.privileged.link_cmd": {12, 21},
}
APIS = {3333, 5000, 6080, 6083, 8773, 8774, 8776, 8778, 9292, 9696}
LOOPBACK = {8775, 33890, 34369, 35672, 35673, 36200}
GUESTS = range(26000, 27000)


def ours() -> list[psutil.Process]:
    """The cloud's processes."""
    found = []
    for process in psutil.process_iter():
        try:
            if " /run/nova.py " in Path(f"/proc/{process.pid}/mountinfo").read_text() and process.uids():
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


def status(process: psutil.Process, field: str) -> str:
    """A line of /proc/PID/status."""
    return re.findall(rf"^{field}:\s*(.*)$", Path(f"/proc/{process.pid}/status").read_text(), re.M)[0]


def capabilities(process: psutil.Process) -> set[int]:
    """Its effective capabilities."""
    mask = int(status(process, "CapEff"), 16)
    return {bit for bit in range(64) if mask >> bit & 1}


def password(cloud: Machine, name: str) -> str:
    """One of the cloud's secrets."""
    return str(json.loads((cloud.folder / "nova/state/passwords.json").read_text())[name])


@pytest.fixture(scope="module")
def inner(cloud: Machine) -> Iterator[str]:
    """The floating address of an instance."""
    fixed = cloud.boot("inner")
    address = cloud.floating("inner")
    eventually("ssh to inner", lambda: cloud.ssh(address, "hostname") == "inner")
    (cloud.folder / "inner").write_text(fixed)
    yield address
    cloud.shell("openstack server delete --wait inner")


# ---- Users ----


def test_no_process_of_openstack_is_roots_but_privseps_helpers(cloud: Machine, inner: str) -> None:
    contexts = set()
    for process in ours():
        line = process.cmdline()
        if "--privsep_context" in line:
            contexts.add(context := line[line.index("--privsep_context") + 1])
            assert capabilities(process) == HELPERS[context], context
        elif process.uids().effective == 0:
            assert process.name().lower() in ROOTS, line
        else:
            assert process.uids().effective in (USER, GUEST_USER), line
            assert capabilities(process) == set(), line
    assert contexts >= {"nova.privsep.sys_admin_pctxt", "neutron.privileged.default"}


def running(name: str) -> psutil.Process:
    """The cloud's process whose command line has this name."""
    return next(process for process in ours() if process.uids().effective and any(name in word for word in process.cmdline()))


@pytest.mark.parametrize("name", ["nova-compute", "neutron-ovn-metadata-agent", "cinder-volume", "cinder-backup"])
def test_four_services_are_in_the_group_that_may_ask_for_root(cloud: Machine, name: str) -> None:
    process = running(name)
    assert (process.uids().effective, process.gids().effective) == (USER, PRIVSEP_GROUP)


def window(process: psutil.Process) -> str:
    """The window that a process was started in, by its keep; else all that is known of it."""
    asked = [each for each in ours() if ["fork", str(process.pid)] == each.cmdline()[3:5]]  # conf/fork, which waits for it
    lines = [" ".join(parent.cmdline()) for parent in (asked[0] if asked else process).parents()]
    found = re.search(r"/keep (\S+) ", "\n".join(lines))
    return found[1] if found else f"{process.cmdline()}, started by {lines}"


def test_nobody_else_is_in_that_group(cloud: Machine) -> None:
    groups = lambda process: f"{status(process, 'Groups')} {status(process, 'Gid')}".split()
    those = [process for process in ours() if str(PRIVSEP_GROUP) in groups(process)]
    assert {window(process) for process in those} == {"compute", "network-meta", "volume", "volume-backup"}
    listening = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert not {process.pid for process in those} & listening


def asks(of: int, *line: str) -> bool:
    """May nova-py, in this group, have the cloud's sudo do this?"""
    there = ("nsenter", "--mount", "--root", f"--target={running('nova-compute').pid}")
    who = ("setpriv", f"--reuid={USER}", f"--regid={of}", f"--groups={of}")
    return subprocess.run([*there, *who, "sudo", "-n", "-l", *line], capture_output=True, check=False, cwd="/").returncode == 0


HELPER = "/run/nova.py/state/env/bin/privsep-helper"
FORK = "/run/nova.py/state/conf/fork"
CINDER = ("--privsep_context", "cinder.privsep.sys_admin_pctxt")
SOCKET = ("--privsep_sock_path", "/tmp/tmpab_12/privsep.sock")  # noqa: S108 (nobody listens there)
NOVA = ("--privsep_context", "nova.privsep.sys_admin_pctxt")
ID = "01234567-89ab-cdef-0123-456789abcdef"
HAPROXY = ("env", f"PROCESS_TAG=haproxy-{ID}", "haproxy", "-f", f"/run/nova.py/state/neutron/ovn-metadata-proxy/{ID}.conf")


def test_that_group_has_privseps_helpers_and_nothing_more_as_root(cloud: Machine) -> None:
    allowed = (FORK, "nova", "privsep-helper", *NOVA, *SOCKET)
    assert asks(PRIVSEP_GROUP, *allowed)
    assert asks(PRIVSEP_GROUP, HELPER, *CINDER, *SOCKET)
    assert not asks(USER, *allowed), "an API's process is not in the group"
    assert asks(PRIVSEP_GROUP, "/usr/sbin/ip", "netns", "exec", f"ovnmeta-{ID}", *HAPROXY)
    for line in (
        ("/usr/bin/id",),
        ("/bin/sh", "-c", "id"),
        (HELPER,),
        (FORK, "nova", "privsep-helper"),
        (FORK, "nova", "nova-manage", "db", "purge"),
        (FORK, "../x", "privsep-helper", *NOVA, *SOCKET),
        (FORK, "nova", "privsep-helper", "--config-file", "/tmp/mine.conf", *NOVA, *SOCKET),  # noqa: S108
        (FORK, "nova", "privsep-helper", "--privsep_context", "os.system", *SOCKET),
        (FORK, "nova", "privsep-helper", *NOVA, "--privsep_sock_path", "/tmp/tmpa/../privsep.sock"),  # noqa: S108
        (HELPER, "--config-file", "/tmp/mine.conf", *CINDER, *SOCKET),  # noqa: S108
        (HELPER, "--privsep_context", "os.system", *SOCKET),
        (HELPER, "--privsep_context", "cinder.privsep.sys_admin_pctxt.x", *SOCKET),
        (HELPER, *CINDER, "--privsep_sock_path", "/tmp/tmpa/privsep.sock --config-file /tmp/mine.conf"),  # noqa: S108
        (HELPER, *CINDER, "--privsep_sock_path", "/tmp/tmpa/../privsep.sock"),  # noqa: S108
        ("/usr/sbin/ip", "netns", "exec", f"ovnmeta-{ID}", "id"),
        ("/usr/sbin/ip", "netns", "exec", f"ovnmeta-{ID}", *HAPROXY, "-f", "/tmp/mine.conf"),  # noqa: S108
        ("/usr/sbin/ip", "link", "delete", "br-ex"),
        ("/run/nova.py/state/env/bin/cinder-rootwrap", "/tmp/rootwrap.conf", "id"),  # noqa: S108
    ):
        assert not asks(PRIVSEP_GROUP, *line), line


def test_what_root_runs_is_not_nova_pys_to_change(cloud: Machine) -> None:
    state = cloud.folder / "nova/state"
    places = [str(state / name) for name in ("conf", "run", "env", "ec2", "root/etc")]
    others = ("(", "-user", str(USER), "-or", "-perm", "/o=w", ")", "-not", "-type", "l")
    found = subprocess.run(["find", *places, *others], capture_output=True, text=True, check=True).stdout.split()
    names = {Path(name).name for name in found if f"{state}/conf" in name}
    assert "nova.conf" in names
    assert not names & {"conf", "keep", "window", "test", "screenrc", "opendj"} and not [n for n in names if n.endswith(".nft")]
    besides = (f"{state}/conf/", f"{state}/run/preload-")  # sockets, for nova-py to connect to
    assert [name for name in found if not name.startswith(besides) and not name.endswith("/.lock")] == []  # uv's


def test_the_instances_are_for_nova_compute_alone(cloud: Machine) -> None:
    def reaches(of: int) -> bool:
        who = ("setpriv", f"--reuid={USER}", f"--regid={of}", f"--groups={of}", "virsh", "--connect", "qemu:///system", "list")
        line = ("nsenter", "--mount", "--root", f"--target={running('nova-compute').pid}", *who)
        return subprocess.run(line, capture_output=True, check=False).returncode == 0

    assert reaches(PRIVSEP_GROUP) and not reaches(USER)


# ---- Ports ----


def listening() -> set[tuple[str, str, int]]:
    """Protocol, address and port of everything that the cloud's processes listen on."""
    mine = {process.pid for process in ours()}
    found = [c for c in psutil.net_connections("inet") if c.pid in mine and not c.raddr]
    named = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    open_to_all = [c for c in found if c.laddr and c.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)]
    # A port that the kernel chose when something was sent (swift's log) is nobody's address.
    those = [c for c in open_to_all if c.type == socket.SOCK_STREAM or not first <= c.laddr.port <= last]
    return {(named[c.type], c.laddr.ip, c.laddr.port) for c in those}


def test_apis_listen_on_host_ip_and_everything_else_on_loopback(cloud: Machine, inner: str) -> None:
    found = listening()
    guests = {place for place in found if place[2] in GUESTS}
    assert {ip for _, ip, _ in guests} == {"127.0.0.1"}
    assert {place for place in found if place[1] == cloud.host_ip()} == {("tcp", cloud.host_ip(), port) for port in APIS}
    rest = {place for place in found - guests if place[1] != cloud.host_ip()}
    assert {ip for _, ip, _ in rest} <= {"127.0.0.1", "::1"}
    assert {(kind, port) for kind, _, port in rest} == {("tcp", port) for port in LOOPBACK}


# ---- Secrets ----


def holders(secrets: list[str], *places: Path) -> set[Path]:
    """The files below these places that have one of the secrets in them; instances' and volumes' disks are not looked at."""
    but = ("--exclude-dir=env", "--exclude-dir=ec2", "--exclude-dir=uv", "--exclude=disk", "--devices=skip")
    line = ["grep", "-rlF", *but, "-f", "-", *(str(place) for place in places if place.exists())]
    said = subprocess.run(line, input="\n".join(secrets), capture_output=True, text=True, check=False).stdout
    return {Path(name) for name in said.splitlines()}


def open_to_others(cloud: Machine, path: Path) -> bool:
    """Can another user than its owner read it? By its own mode, and by those of the folders above it in DIR."""
    way = [path, *(folder for folder in path.parents if folder.is_relative_to(cloud.folder / "nova"))]
    return all(place.stat().st_mode & 0o077 for place in way)


def test_secrets_are_in_files_that_their_owners_alone_read(cloud: Machine, inner: str) -> None:
    known = json.loads((cloud.folder / "nova/state/passwords.json").read_text())
    chosen = ("LDAP_PASSWORD", "DEMO_PASSWORD")  # for an earlier cloud in this folder
    assert min(len(value) for name, value in known.items() if name not in chosen) >= 32
    found = holders([*known.values()], cloud.folder / "nova")
    names = {str(path.relative_to(cloud.folder / "nova")) for path in found}
    assert names >= {"novarc", "clouds.yaml", "state/passwords.json", "state/conf/nova.conf", "state/conf/neutron.conf"}
    assert {path for path in found if open_to_others(cloud, path)} == set()
    assert {path for path in found if path.stat().st_mode & 0o077 and "conf" in path.parts} == set()
    keys = [*(cloud.folder / "nova/state/keystone").glob("*/[0-9]")]
    assert len(keys) == 4 and not any(key.stat().st_mode & 0o077 for key in keys)


def test_no_log_has_a_secret(cloud: Machine, inner: str) -> None:
    known = json.loads((cloud.folder / "nova/state/passwords.json").read_text())
    assert holders([*known.values()], cloud.folder / "nova/state/log", Path("/var/log")) == set()
    assert holders(["inner"], cloud.folder / "nova/state/log"), "what is in a log is found"


def test_no_process_has_a_secret_in_its_command_line_or_its_environment(cloud: Machine) -> None:
    known = json.loads((cloud.folder / "nova/state/passwords.json").read_text())
    control = subprocess.Popen(["sleep", "600"], env={"SECRET": known["RABBIT_PASS"]})
    held = set()
    for process in psutil.process_iter():
        try:
            text = b"".join(Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it has ended
            continue
        held |= {process.pid} if any(secret.encode() in text for secret in known.values()) else set()
    control.kill()
    assert held == {control.pid}


# ---- Guessing ----


def log_in(cloud: Machine, user: str, secret: str, project: str) -> int:
    """keystone's answer to a login."""
    who = {"user": {"name": user, "domain": {"id": "default"}, "password": secret}}
    scope = {"project": {"name": project, "domain": {"id": "default"}}}
    body = {"auth": {"identity": {"methods": ["password"], "password": who}, "scope": scope}}
    return answer(cloud, "/v3/auth/tokens", json.dumps(body).encode(), {"Content-Type": "application/json"})


def answer(cloud: Machine, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    """keystone's status code."""
    request = urllib.request.Request(f"http://{cloud.host_ip()}:5000{path}", data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answered:
            return int(answered.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_who_guesses_a_password_locks_it_for_half_a_minute(cloud: Machine) -> None:
    cloud.shell("openstack project create guessed && openstack user create --password the-right-one guessed")
    cloud.shell("openstack role add --project guessed --user guessed member")
    token = cloud.shell(
        "OS_USERNAME=guessed OS_PASSWORD=the-right-one OS_PROJECT_NAME=guessed openstack token issue -f value -c id"
    )
    assert [log_in(cloud, "guessed", "the-wrong-one", "guessed") for _ in range(6)] == [401] * 6
    began = time.monotonic()
    assert log_in(cloud, "guessed", "the-right-one", "guessed") == 401
    assert answer(cloud, "/v3/auth/projects", headers={"X-Auth-Token": token}) == 200, "who is in stays in"
    eventually("the lock's end", lambda: log_in(cloud, "guessed", "the-right-one", "guessed") == 201, 60)
    assert 20 < time.monotonic() - began < 50
    cloud.shell("openstack user delete guessed && openstack project delete guessed")


def test_who_guesses_does_not_lock_the_services_out(cloud: Machine) -> None:
    assert [log_in(cloud, "nova", f"a-wrong-one-{n}", "service") for n in range(10)] == [401] * 10
    assert log_in(cloud, "nova", password(cloud, "SERVICE_PASSWORD"), "service") == 201


def test_there_is_no_admins_token(cloud: Machine) -> None:
    for token in ("ADMIN", "admin", "", "openstack"):
        assert answer(cloud, "/v3/users", headers={"X-Auth-Token": token}) == 401
    assert answer(cloud, "/v3/users", headers={"X-Auth-Token": cloud.shell("openstack token issue -f value -c id")}) == 200


# ---- From inside of an instance ----


def test_an_instance_reaches_the_apis_and_nothing_else_of_the_cloud(cloud: Machine, inner: str) -> None:
    ports = sorted({port for _, _, port in listening()} | {3306, 6640, 6641, 6642, 16509, 16514, 4369, 5672})
    gateway = cloud.shell("openstack subnet show public-subnet -f value -c gateway_ip")
    reached = {}
    for address in (cloud.host_ip(), gateway):
        line = f"for p in {' '.join(map(str, ports))}; do nc -w 2 {address} $p </dev/null >/dev/null 2>&1 && echo $p; done; true"
        reached[address] = {int(port) for port in cloud.ssh(inner, line).split()}
    machines = {
        c.laddr.port
        for c in psutil.net_connections("tcp4")
        if c.status == psutil.CONN_LISTEN and c.laddr.ip not in (cloud.host_ip(), "127.0.0.1")
    }
    assert reached[cloud.host_ip()] - machines == APIS
    assert reached[gateway] - machines == set()


def test_an_instance_has_its_own_metadata_whatever_it_says(cloud: Machine, inner: str) -> None:
    fixed = cloud.boot("neighbour")
    number = cloud.openstack("server show neighbour")["id"]
    project = cloud.openstack("project show admin")["id"]

    def get(path: str, **headers: str) -> str:
        said = " ".join(f"--header '{name.replace('_', '-')}: {value}'" for name, value in headers.items())
        return cloud.ssh(inner, f"wget -q -O - {said} 'http://169.254.169.254{path}' 2>&1 || true")

    hostname = "/latest/meta-data/hostname"
    eventually("its metadata", lambda: get(hostname).startswith("inner"))
    for headers in (
        {"X_Forwarded_For": fixed},
        {"X_Instance_ID": number, "X_Tenant_ID": project, "X_Instance_ID_Signature": "0" * 64},
        {"X_OVN_Network_ID": "0", "X_Neutron_Router_ID": "0", "X_Forwarded_For": fixed},
    ):
        assert "neighbour" not in get(hostname, **headers), headers
    for path in ("/../../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/v2.1/servers", "/os-api", "//127.0.0.1:35672/"):
        said = get(path)
        assert "root:" not in said and "server" not in said.lower().replace("server returned error", ""), said
    cloud.shell("openstack server delete --wait neighbour")


# ---- From the machine's neighbours ----


def test_this_machine_is_no_router_for_its_neighbours(cloud: Machine) -> None:
    """What forwards for instances would forward for everybody: only where it did so before, it still does."""
    record = (cloud.folder / "nova/state/record").read_text()
    if "net.ipv4.ip_forward=0" not in record:
        pytest.skip("this machine was a router before the cloud came")
    outside = cloud.default_interface()
    subprocess.run([*FAR, "ip", "route", "replace", "203.0.113.0/24", "via", "198.51.100.10"], check=True)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003)) as wire:
        wire.bind((outside, 0x0003))  # all that goes out as well

        def passed() -> bool:
            subprocess.run([*FAR, "ping", "-c", "1", "-W", "1", "203.0.113.7"], capture_output=True, check=False)
            wire.settimeout(1)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                try:
                    packet: Any = wire.recv(2048)
                except TimeoutError:
                    break
                if packet[16:20] == socket.inet_aton("203.0.113.7"):
                    return True
            return False

        assert not passed()
        chain = ("ip", "nova_py", "forward")
        subprocess.run(["nft", "flush", "chain", *chain], check=True)
        try:
            assert passed(), "without the rule it does"
        finally:
            subprocess.run(["nft", "-f", str(cloud.folder / "nova/state/conf/forward.nft")], check=True)
        assert not passed()
    subprocess.run([*FAR, "ip", "route", "delete", "203.0.113.0/24"], check=True)
