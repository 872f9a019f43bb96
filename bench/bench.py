#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: sudo python3 bench/bench.py [--times N] [--cold] [--only WHAT]... | --bare [--times N] | --scale

What a cloud takes beside what was aimed for: medians of N clouds, as a table; the steps of run_detached, as another; and
bench/start.svg, a timeline of the median one. For a machine that does nothing else and has no cloud. Each is made in a folder
below the home folder, which is removed at the end, whatever happened.

--times N    so many clouds (default: 5)
--cold       one more first, in an empty folder: packages, environment, databases, image
--only WHAT  this row alone, by its short name; may be repeated
--bare       instead: N first clouds, each with all that nova.py downloads and installs, and without any of it before and
             after (uninstall)
--scale      instead: more and more instances, then hosts (nova-compute with nova's fake driver); tables and bench/scale.svg

Where placement has no room for so many instances, the host's ratios are raised first, and that is said.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import report
from report import Start

HERE = Path(__file__).resolve().parent
NOVA_PY, TOOL = HERE.parent / "nova.py", HERE.parent / ".tool/env"  # nova.py's own environment: it has the APIs' client
DIR = Path("nova")  # the cloud's folder, below where we are
GB = 1e9


def nova_py(*words: str) -> float:
    """Call it: its seconds by the clock. It ends by itself at Ctrl-C; where it fails, what it said is our end."""
    began, line = time.monotonic(), ["python3", str(NOVA_PY), *words]
    pipes: Any = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(line, start_new_session=True, **pipes) as process:
        try:
            said = process.communicate()[1]
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate()
            raise
    if process.returncode:
        print(f"{shlex.join(line)} failed in {Path.cwd()}:\n{said}", file=sys.stderr)
        sys.exit(1)
    return time.monotonic() - began


def run_detached() -> Start:
    """A new cloud."""
    file = DIR / "state/log/nova.log"
    size, called = file.stat().st_size if file.exists() else 0, time.time()
    nova_py("run_detached", "--yes")
    return Start(called, time.time(), file.read_bytes()[size:].decode(errors="replace"))


def wait_for(what: str, ready: Callable[[], object], seconds: float, pause: float) -> float:
    """Look until it is ready: the seconds that it took."""
    began, last = time.monotonic(), "no answer"
    while time.monotonic() < began + seconds:
        try:
            if ready():
                return time.monotonic() - began
        except (OSError, http.client.HTTPException) as error:
            last = f"{type(error).__name__}: {error}"
        time.sleep(pause)
    raise RuntimeError(f"{what}: not after {seconds:.0f} s ({last})")


# ---- The cloud's processes, and its APIs ----


def of_cloud(name: str) -> dict[int, str]:
    """A file in /proc of all that have a cloud's folder at /run/nova.py, as its processes have, but for guests' QEMUs."""
    found = dict[int, str]()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            ours = " /run/nova.py " in (process / "mountinfo").read_text()
            if ours and not (process / "comm").read_text().startswith("qemu-system"):
                found[int(process.name)] = (process / name).read_text()
    return found


def pss() -> float:
    """Memory of the cloud's processes, bytes: a page that some share is divided among them."""
    return sum(1024.0 * int(size) for size in re.findall(r"^Pss: +(\d+) kB", "".join(of_cloud("smaps_rollup").values()), re.M))


def processor() -> float:
    """Seconds of processor that the cloud's processes have had, with children of theirs that have ended."""
    ticks = [line.rpartition(")")[2].split()[11:15] for line in of_cloud("stat").values()]
    return sum(map(int, sum(ticks, list[str]()))) / os.sysconf("SC_CLK_TCK")


def connect() -> Any:
    """A connection to the cloud as its admin, logged in."""
    import openstack  # of nova.py's environment: see main

    files = openstack.config.OpenStackConfig(config_files=[str(DIR / "clouds.yaml")], secure_files=[], load_envvars=False)
    config = files.get_one("nova", api_timeout=300)
    os.environ["no_proxy"] = f"{config.get_auth_args()['auth_url'].split('/')[2].split(':')[0]},{os.environ.get('no_proxy', '')}"
    admin = openstack.connection.Connection(config=config)
    admin.authorize()
    return admin


def has_room(admin: Any, count: int) -> bool:
    """Placement has room for so many instances on each host, or is told so; not where nova-compute came between (409)."""
    statuses = set[int]()
    for provider in admin.placement.get("/resource_providers").json()["resource_providers"]:
        place = f"/resource_providers/{provider['uuid']}/inventories"
        known = admin.placement.get(place).json()
        sizes = [(known["inventories"][kind], wanted) for kind, wanted in (("VCPU", count), ("MEMORY_MB", 512 * count))]
        if short := [(one, wanted) for one, wanted in sizes if one["total"] * one["allocation_ratio"] < wanted]:
            print(f"  {provider['name']} has no room for {count} instances in placement: raised", file=sys.stderr)
            for one, wanted in short:
                one["allocation_ratio"] = float(-(-wanted // one["total"]))
            statuses.add(admin.placement.put(place, json=known).status_code)
    return statuses <= {200}


def built(admin: Any) -> int:
    """How many instances are ACTIVE or in ERROR: in one request, as its processor time is measured as well."""
    return len(list(admin.compute.servers(details=False, status=["ACTIVE", "ERROR"])))


def boot(admin: Any, count: int, networks: object = None) -> float:
    """So many more instances, asked for a hundred at a time: seconds until all are ACTIVE."""
    if not networks:
        wait_for("room in placement", lambda: has_room(admin, count), 30, 1)
    which = dict(name="bench", flavor_id="1", image_id=admin.image.find_image("ami-tty").id)
    which["networks"] = networks or [{"uuid": admin.network.find_network("private").id}]
    before, began = built(admin), time.monotonic()
    for left in range(count, 0, -100):
        admin.compute.create_server(**which, min_count=min(left, 100), max_count=min(left, 100))
    wait_for(f"{count} instances", lambda: built(admin) >= before + count, 120 + 30 * count, max(0.5, count / 200))
    seconds = time.monotonic() - began
    for server in admin.compute.servers(details=False, status="ERROR"):
        fault = admin.compute.get_server(server.id).fault or {}
        raise RuntimeError(f"the instance {server.name} is in ERROR: {fault.get('message')}")
    return seconds


def delete_all(admin: Any) -> None:
    """Every instance, until it is gone."""
    for server in admin.compute.servers(details=False):
        admin.compute.delete_server(server)
    wait_for("the end of the instances", lambda: not list(admin.compute.servers(details=False)), 300, 0.5)


# ---- What is measured: each of a cloud that is up, in this order ----


def to_ssh(start: Start) -> float:
    """From the call of run_detached."""
    return report.until(start, "Boot an instance and reach it by ssh")


def idle(start: Start) -> None:
    """Wait until half a minute after its start: the cloud has nothing more to do then."""
    time.sleep(max(0.0, start.done + 30 - time.time()))


def memory(start: Start) -> float:
    """Of the control plane, when what is equal is kept once, if this kernel does that."""
    idle(start)
    if (DIR / "state/run/ksm.rc").exists():
        wait_for("rest of the kernel", lambda: re.search("looked|left", (DIR / "state/log/ksm.log").read_text()), 660, 1)
    return pss() / GB


def processor_share(start: Start) -> float:
    """What it takes of one core."""
    idle(start)
    before, began = processor(), time.monotonic()
    time.sleep(60)
    return 100 * (processor() - before) / (time.monotonic() - began)


def disk(start: Start) -> float:
    """What the cloud's folder takes."""
    done = subprocess.run(["du", "--summarize", "--block-size=1", DIR], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0]) / GB


def restart(start: Start) -> float:
    """Kill nova's API: until it answers a user's question again."""
    admin = connect()
    host, path = re.findall(r"http://([^/]+)(.*)", admin.compute.get_endpoint().rstrip("/") + "/servers")[0]
    headers = {"X-Auth-Token": admin.authorize()}

    def works() -> bool:
        with contextlib.closing(http.client.HTTPConnection(host, timeout=10)) as asked:
            asked.request("GET", path, headers=headers)
            return asked.getresponse().status == 200

    said = subprocess.run(["ss", "-Hltnp", "sport = :8774"], capture_output=True, text=True, check=True).stdout
    those = {int(process) for process in re.findall(r"pid=(\d+)", said)} & of_cloud("comm").keys()
    if not works() or not those:
        raise RuntimeError(f"nova's API does not work, or is not the cloud's: {said}")
    for process in those:
        os.kill(process, signal.SIGKILL)
    return wait_for("nova's API", works, 90, 0.05)


def first_ssh(start: Start) -> float:
    """From the request of an instance until it lets its user in, as in nova.py's smoke_test."""
    admin, key = connect(), Path("key")
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", key], check=True)
    keypair = admin.compute.create_keypair(name="bench", public_key=key.with_suffix(".pub").read_text())
    port = admin.network.create_port(name="bench", network_id=admin.network.find_network("private").id)
    address = admin.network.create_ip(floating_network_id=admin.network.find_network("public").id, port_id=port.id)
    place = address.floating_ip_address
    login = shlex.split("timeout 15 ssh -i key -oBatchMode=yes -oConnectTimeout=3 -oLogLevel=ERROR -oStrictHostKeyChecking=no")
    login += ["-oUserKnownHostsFile=/dev/null", f"root@{place}", "hostname"]

    def lets_in() -> bool:
        socket.create_connection((place, 22), timeout=0.3).close()  # ssh would wait longer for one that is not there yet
        return subprocess.run(login, capture_output=True, text=True, check=False).stdout.strip() == "bench"

    which = dict(flavor_id="1", image_id=admin.image.find_image("ami-tty").id, key_name="bench", networks=[{"port": port.id}])
    began = time.monotonic()
    admin.compute.create_server(name="bench", **which)
    wait_for(f"ssh to {place}", lets_in, 180, 0.1)
    seconds = time.monotonic() - began
    delete_all(admin)
    admin.network.delete_ip(address)
    admin.network.delete_port(port)
    admin.compute.delete_keypair(keypair)
    return seconds


def twenty(start: Start) -> float:
    """Instances at once."""
    admin = connect()
    seconds = boot(admin, 20)
    delete_all(admin)
    return seconds


def terminate(start: Start) -> float:
    """With ten instances."""
    boot(connect(), 10)
    return nova_py("terminate")


class Row(NamedTuple):
    """A row of the table: its name for --only, what was aimed for, what it is."""

    name: str
    goal: float
    unit: str
    what: str
    measure: Callable[[Start], float]


# fmt: off
BARE = Row("bare",   55,  "s",  "bare machine to an instance reached by ssh, downloads included", to_ssh)
UNINSTALL = Row("uninstall", 3, "s", "uninstall", lambda _: nova_py("uninstall", "--yes"))
ROWS = (
    Row("run",       16.6,  "s",  "run_detached, installed already, to an instance reached by ssh", to_ssh),
    Row("apis",      12,  "s",  "the same until every API answers", lambda start: report.until(start, "Start the APIs")),
    Row("memory",    0.96, "GB", "memory (PSS) of all processes of the idle control plane", memory),
    Row("processor", 3,   "%",  "processor of the idle control plane, of one core over 60 s", processor_share),
    Row("disk",      1.4, "GB", "disk used by DIR, downloads included", disk),
    Row("restart",   3,   "s",  "one service (nova's API) killed until it works again", restart),
    Row("ssh",       7,   "s",  "an instance requested until ssh answers", first_ssh),
    Row("twenty",    40,  "s",  "20 instances at once until all are ACTIVE", twenty),
    Row("stop",      12,  "s",  "stop, then start", lambda _: nova_py("stop") + nova_py("start")),
    Row("terminate", 8,   "s",  "terminate with 10 instances", terminate),
    Row("clean",     2,   "s",  "clean", lambda _: nova_py("clean")),
)
# fmt: on


def table_of_rows(rows: Sequence[Row], found: Sequence[dict[str, float]]) -> str:
    """Medians beside the goals."""
    middle = {row.name: statistics.median(each[row.name] for each in found) for row in rows}
    lines = [(row.what, report.shown(middle[row.name], row.unit), f"{row.goal:g} {row.unit}") for row in rows]
    return report.table(("what", f"median of {len(found)}", "goal"), *lines)


def measure(times: int, is_cold: bool, rows: Sequence[Row]) -> None:
    """N clouds: the tables, and the picture of the median one's start."""
    cold, found, starts = dict[str, float](), list[dict[str, float]](), list[Start]()
    if is_cold:
        cold = report.phases(run_detached())
        nova_py("scrub", "--yes")
    else:
        nova_py("install")
    for number in range(times):
        print(f"cloud {number + 1} of {times}", file=sys.stderr)
        starts.append(run_detached())
        found.append({})
        for row in rows:
            print(f"  {row.what}: ", end="", file=sys.stderr, flush=True)
            found[-1][row.name] = row.measure(starts[-1])
            print(report.shown(found[-1][row.name], row.unit), file=sys.stderr)
        nova_py("scrub", "--yes")
    middle = sorted(starts, key=lambda start: start.done - start.called)[(times - 1) // 2]
    (HERE / "start.svg").write_text(report.timeline(middle))
    print(f"{table_of_rows(rows, found)}\n{report.table_of_steps(cold, [report.phases(start) for start in starts])}", end="")


def measure_bare(times: int) -> None:
    """N first clouds, of a machine that has nothing of them: the tables."""
    found, starts = list[dict[str, float]](), list[Start]()
    for _ in range(times):
        if TOOL.exists():
            raise RuntimeError("nova.py has been called from this clone already: nova.py uninstall removes what that made")
        starts.append(run_detached())
        found.append({BARE.name: BARE.measure(starts[-1])})
        nova_py("scrub", "--yes")
        found[-1][UNINSTALL.name] = UNINSTALL.measure(starts[-1])
        for row in (BARE, UNINSTALL):
            print(f"{row.what}: {report.shown(found[-1][row.name], row.unit)}", file=sys.stderr)
    print(
        f"{table_of_rows([BARE, UNINSTALL], found)}\n{report.table_of_steps({}, [report.phases(start) for start in starts])}",
        end="",
    )


# ---- More and more ----


def command_of(window: str) -> str:
    """What keep runs in it."""
    return str(re.findall(r"^\*\) .*?; keep \S+ \S+ (.+); exec", window, re.M)[0])


def start_host(number: int, beside: int) -> None:
    """One more nova-compute, as the cloud's own is started, but with nova's fake driver, a name and a state. scrub ends it."""
    place, seen = DIR / f"state/nova/fake{number:03}", f"/run/nova.py/state/nova/fake{number:03}"
    command = command_of((DIR / "state/run/compute.rc").read_text())
    place.mkdir()
    shutil.chown(place, "nova-py", "nova-py")
    own = f"[DEFAULT]\nhost = fake{number:03}\ncompute_driver = fake.FakeDriver\nstate_path = {seen}\ninstances_path = {seen}\n"
    (place / "conf").write_text(f"{own}[oslo_concurrency]\nlock_path = {seen}\n")
    line = f". /run/nova.py/state/conf/window; exec {command} --config-file {seen}/conf"
    words = ["nsenter", "--mount", "--target", str(beside), "setpriv", "--reuid=nova-py", "--regid=nova-py"]
    with open(place / "log", "w") as log:
        pipes: Any = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        subprocess.Popen([*words, "--init-groups", "bash", "-c", line], start_new_session=True, **pipes)


def hosts_up(admin: Any) -> int:
    """How many of those are up, and in a cell."""
    return sum(each.state == "up" and each.name.startswith("fake") for each in admin.compute.hypervisors(details=False))


def scale() -> None:
    """Instances and hosts, more and more: tables and a picture."""
    nova_py("install")
    idle(run_detached())
    admin, booted, hosts, spread = connect(), list[list[float]](), list[list[float]](), list[list[float]]()
    for count in (1, 5, 10, 20, 40):
        seconds = boot(admin, count)
        booted.append([count, seconds, seconds / count, pss() / 1e6])
        print(f"{count} instances: {seconds:.1f} s", file=sys.stderr)
        delete_all(admin)
    beside = next(process for process, name in of_cloud("comm").items() if name == "screen\n")  # the session's: it lasts
    before, seconds, there = pss(), 0.0, 0
    for count in (10, 50, 100):  # beside those that are there
        began = time.monotonic()
        for number in range(there, count):
            start_host(number, beside)
        try:
            wait_for(f"{count} hosts", lambda wanted=count: hosts_up(admin) >= wanted, 60 + 10 * count, 1)  # type: ignore[misc]
        except RuntimeError:
            print((DIR / f"state/nova/fake{there:03}/log").read_text()[-2000:], file=sys.stderr)
            raise
        seconds, there = seconds + time.monotonic() - began, count
        time.sleep(10)
        hosts.append([count, seconds, seconds / count, (pss() - before) / count / 1e6])
        print(f"{count} hosts: {seconds:.1f} s, {hosts[-1][3]:.0f} MB each", file=sys.stderr)
    for service in admin.compute.services(binary="nova-compute"):
        if not service.host.startswith("fake"):  # the real one gets none of these
            admin.compute.disable_service(service)
    for count in (100, 900):  # 1,000 in the end
        seconds = boot(admin, count, "none")
        spread.append([count, seconds, seconds / count])
        print(f"{count} more instances on {there} hosts: {seconds:.1f} s", file=sys.stderr)
    (HERE / "scale.svg").write_text(report.plots(booted, hosts, spread))
    for names, lines in (
        (("instances at once", "all ACTIVE after, s", "s each", "control plane, MB"), booted),
        (("hosts", "all up after, s", "s each", "MB each"), hosts),
        ((f"more instances on {there} hosts, no network", "all ACTIVE after, s", "s each"), spread),
    ):
        print(report.table(names, *([f"{one:,.{0 if one >= 10 or one == int(one) else 2}f}" for one in line] for line in lines)))


# ---- Command line ----


def main() -> None:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").removeprefix("usage: "))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS])
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--scale", action="store_true")
    chosen = parser.parse_args()
    if os.geteuid() or of_cloud("comm"):
        sys.exit("bench.py needs root" if os.geteuid() else "a cloud is up on this machine: end it first")
    if sys.prefix != str(TOOL) and not chosen.bare:  # nova.py makes its environment where it is missing
        subprocess.run(["python3", NOVA_PY, "settings"], stdout=subprocess.DEVNULL, check=True)
        os.execv(TOOL / "bin/python", [str(TOOL / "bin/python"), *sys.argv])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="nova-bench-", dir=Path.home()))
    os.chdir(folder)
    try:
        if chosen.scale:
            scale()
        elif chosen.bare:
            measure_bare(max(1, chosen.times))
        else:
            measure(max(1, chosen.times), chosen.cold, [row for row in ROWS if row.name in (chosen.only or row.name)])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if (DIR / "state").exists():
            nova_py("scrub", "--yes")
        os.chdir("/")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
