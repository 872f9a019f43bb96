# SPDX-License-Identifier: Apache-2.0
"""Each service killed (SIGKILL) while instances are being booted: it comes back by itself, and no instance is lost.

Two instances are being booted all the time. Each of them becomes ACTIVE, or is in ERROR and says why; the one that was there
before is the same one afterwards. What it took is printed, a line a fault: README.md has that table.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from .conftest import Machine, eventually, on, read

pytestmark = [on("vlan"), pytest.mark.slow]

BUILD = ("mysql", "rabbit", "ovsdb", "vswitchd", "northd", "libvirt", "ovn", "keystone", "placement", "network", "api")
BUILD += ("conductor", "glance", "network-ovn", "scheduler", "compute")


@dataclass
class Asked:
    """An instance that was asked for, and when; what became of it."""

    name: str
    at: float
    id: str = ""
    active: float = 0.0
    status: str = "BUILD"
    fault: str = ""


@dataclass
class Api:
    """The cloud's APIs by HTTP: a command-line client would take seconds a call, and the machine from the cloud."""

    cloud: Machine
    ip: str = ""
    token: str = ""
    asked: list[Asked] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    image: str = ""
    network: str = ""

    def call(self, method: str, place: str, body: Any = None, timeout: float = 60) -> Any:
        """Ask the API at PORT/PATH; what it answers."""
        head = {"X-Auth-Token": self.token, "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://{self.ip}:{place}", data, head, method=method)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read() or b"null")

    def servers(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "8774/v2.1/servers/detail")["servers"])

    def ask_for(self, name: str) -> Asked:
        """A new instance; whether it was accepted is in `id`."""
        one = Asked(name, time.monotonic())
        wanted = {"name": name, "imageRef": self.image, "flavorRef": "1", "networks": [{"uuid": self.network}]}
        one.id = self.call("POST", "8774/v2.1/servers", {"server": wanted})["server"]["id"]
        self.asked.append(one)
        return one

    def look(self) -> None:
        """Note what became of each instance; those that are over are deleted."""
        known = {one.id: one for one in self.asked if one.status == "BUILD"}
        for server in self.servers():
            if not (one := known.get(server["id"])) or server["status"] == "BUILD":
                continue
            if server["status"] == "ERROR" and not server.get("fault"):
                continue  # its reason may be told later
            one.status, one.fault = server["status"], server.get("fault", {}).get("message", "")
            one.active = time.monotonic() if one.status == "ACTIVE" else 0.0
            with contextlib.suppress(OSError):
                self.call("DELETE", f"8774/v2.1/servers/{one.id}")

    def boot_all_the_time(self) -> None:
        """Two at once, for as long as nobody says stop; the APIs may be away."""
        while not self.stop.wait(0.5):
            with contextlib.suppress(OSError, ValueError):
                self.look()
                now = [one for one in self.asked if one.status == "BUILD" and time.monotonic() - one.at < 60]
                if len(now) < 2:
                    self.ask_for(f"busy-{len(self.asked)}")


@pytest.fixture(scope="module")
def api(cloud: Machine) -> Iterator[Api]:
    it = Api(cloud, cloud.host_ip(), cloud.shell("openstack token issue -f value -c id"))
    it.image = cloud.openstack("image show ami-tty")["id"]
    it.network = cloud.openstack("network show private")["id"]
    yield it
    it.stop.set()
    cloud.shell("openstack server list -f value -c ID | xargs -r openstack server delete --wait")


@pytest.fixture(scope="module")
def kept(cloud: Machine, api: Api) -> str:
    """An instance that is there before: its floating address."""
    cloud.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --key-name mine --wait kept")
    address = cloud.floating("kept")
    eventually("ssh to kept", lambda: cloud.ssh(address, "hostname") == "kept")
    return address


def pinged(address: str) -> bool:
    return subprocess.run(["ping", "-c1", "-W1", address], capture_output=True, check=False).returncode == 0


def service(cloud: Machine, window: str) -> psutil.Process | None:
    """The process of a window's service."""
    try:
        keeper = psutil.Process(int(read(cloud.folder / f"nova/state/run/{window}.pid") or 0))
        others = ("sleep", "keep", "sh", "bash", "setpriv", "tini", "qemu-system-x86")
        children = keeper.children(recursive=True)
        forked = [line[4] for child in children if (line := child.cmdline())[3:4] == ["fork"]]  # conf/fork, which waits for it
        running = [psutil.Process(int(forked[0]))] if forked else [each for each in children if each.name() not in others]
        return running[0] if running else None
    except (psutil.Error, ValueError):
        return None


def came_back(cloud: Machine, window: str, old: psutil.Process) -> bool:
    return (now := service(cloud, window)) is not None and now.pid != old.pid


def metadata(cloud: Machine, address: str) -> bool:
    return cloud.ssh(address, "timeout 9 wget -q -O - http://169.254.169.254/latest/meta-data/hostname || true").startswith(
        "kept"
    )


def makes_volumes(api: Api) -> bool:
    """A volume is made, and deleted again."""
    place = f"8776/v3/{project(api)}/volumes"
    made = api.call("POST", place, {"volume": {"size": 1, "name": "after"}})["volume"]["id"]
    try:
        status = lambda: api.call("GET", f"{place}/{made}")["volume"]["status"]
        eventually("the volume", lambda: (now := status()) and not now.startswith("creat"), 60)
        return bool(status() == "available")
    finally:
        api.call("POST", f"{place}/{made}/action", {"os-force_delete": {}})


def listens(ip: str, port: int) -> bool:
    return bool(eventually("a listener", lambda: [c for c in psutil.net_connections("tcp") if c.laddr == (ip, port)]))


PROBES: dict[str, Callable[[Api, str], Any]] = {
    "network-meta": lambda api, kept: metadata(api.cloud, kept),
    "ldap": lambda api, kept: api.call("GET", "5000/v3/users?domain_id=" + domain(api))["users"],
    "objects": lambda api, kept: api.call("GET", f"3333/v1/AUTH_{project(api)}?format=json") == [],
    "objectstore": lambda api, kept: api.call("GET", f"3333/v1/AUTH_{project(api)}?format=json") == [],
    "ec2": lambda api, kept: listens(api.ip, 8773),
    "novnc": lambda api, kept: listens(api.ip, 6080),
    "serial": lambda api, kept: listens(api.ip, 6083),
    "volume-api": lambda api, kept: makes_volumes(api),
    "volume-sched": lambda api, kept: makes_volumes(api),
    "volume": lambda api, kept: makes_volumes(api),
}


def domain(api: Api) -> str:
    (found,) = api.call("GET", "5000/v3/domains?name=ldap")["domains"]
    return str(found["id"])


def project(api: Api) -> str:
    (found,) = api.call("GET", "5000/v3/projects?name=admin")["projects"]
    return str(found["id"])


BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture(scope="module")
def booted(cloud: Machine, kept: str) -> str:
    """Which boot of `kept` it is."""
    return cloud.ssh(kept, BOOT_ID)


@pytest.fixture(scope="module")
def busy(api: Api, kept: str, booted: str) -> Iterator[Api]:
    """Instances are being booted all the time."""
    thread = threading.Thread(target=api.boot_all_the_time, daemon=True)
    thread.start()
    yield api
    api.stop.set()
    thread.join(90)


@pytest.fixture
def measure(busy: Api, kept: str, capsys: pytest.CaptureFixture[str]) -> Callable[[str, Callable[[], object]], None]:
    """From now on: until it is back, until `kept` answers ping, until it does its work again; a line of the table."""

    def measured(name: str, back: Callable[[], object]) -> None:
        began, probe = time.monotonic(), PROBES.get(name)
        since = lambda: time.monotonic() - began
        new = lambda: [one.active for one in busy.asked if one.at > began and one.active]
        eventually(f"{name} itself", back, 90)
        there = since()
        eventually(f"ping of kept after the death of {name}", lambda: pinged(kept), 90)
        answered = since()
        eventually(f"work after the death of {name}", (lambda: probe(busy, kept)) if probe else new, 180)
        well = since() if probe else min(new()) - began
        with capsys.disabled():
            print(f"\n{name:14} back {there:5.1f} s, kept answers {answered:5.1f} s, well {well:5.1f} s", flush=True)

    return measured


Measure = Callable[[str, Callable[[], object]], None]


@pytest.mark.parametrize("window", [*BUILD, *PROBES])
def test_a_killed_service_comes_back(cloud: Machine, busy: Api, measure: Measure, window: str) -> None:
    eventually("two that are being booted", lambda: len([one for one in busy.asked if one.status == "BUILD"]) >= 2, 90)
    old = service(cloud, window)
    assert old, f"no service in the window {window}"
    old.kill()
    measure(window, lambda: (now := service(cloud, window)) and now.pid != old.pid)


def test_these_were_all_windows(cloud: Machine) -> None:
    files = (cloud.folder / "nova/state/run").glob("*.pid")
    assert {path.stem for path in files} - {"libvirtd"} == {*BUILD, *PROBES}  # libvirtd's own file, not its window's


def test_a_killed_keep_is_followed_by_another(cloud: Machine, busy: Api, measure: Measure) -> None:
    pid, old = cloud.folder / "nova/state/run/scheduler.pid", service(cloud, "scheduler")
    keeper = psutil.Process(int(pid.read_text()))
    assert old
    keeper.kill()
    measure("keep", lambda: read(pid) != str(keeper.pid) and (now := service(cloud, "scheduler")) and now.pid != old.pid)
    assert not old.is_running()


def test_a_killed_proxy_of_metadata_comes_back(cloud: Machine, kept: str) -> None:
    proxies = [process for process in psutil.process_iter(["name"]) if process.info["name"] == "haproxy"]
    assert proxies
    for process in proxies:
        process.kill()
    eventually("kept's metadata", lambda: metadata(cloud, kept))


def test_no_instance_is_stuck_or_silent(cloud: Machine, busy: Api, capsys: pytest.CaptureFixture[str]) -> None:
    """Two minutes after the last fault at most; conf/lost-builds.py needs 90 seconds."""
    busy.stop.set()

    def over() -> bool:
        busy.look()
        return not [one for one in busy.asked if one.status == "BUILD"]

    try:
        eventually("the end of all builds", over, 180)
    finally:
        wrong = [(one.name, one.status, one.fault) for one in busy.asked if one.status != "ACTIVE"]
        with capsys.disabled():
            print(f"\n{len(busy.asked)} asked for, not ACTIVE: {len(wrong)}", *wrong, sep="\n  ")
    assert all(one.fault for one in busy.asked if one.status == "ERROR")


def test_the_instance_that_was_there_is_the_same(cloud: Machine, kept: str, booted: str) -> None:
    assert cloud.ssh(kept, BOOT_ID) == booted
    assert cloud.openstack("server show kept")["status"] == "ACTIVE"


def test_all_is_well(cloud: Machine, busy: Api) -> None:
    busy.stop.set()
    cloud.shell(
        "openstack server list -f value -c ID -c Name | grep busy- | cut -d' ' -f1 | xargs -r openstack server delete --wait"
    )
    assert "All is well" in cloud.nova("status")
