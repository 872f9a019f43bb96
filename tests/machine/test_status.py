"""nova.py status on a cloud that is well, and on one that is not; a session and a second cloud of other names."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import NOVA_PY, Machine, eventually, on
from .test_run import Terminal

pytestmark = on("flat-dhcp")


def looked(machine: Machine) -> tuple[int, dict[str, Any]]:
    """The exit code of status --json, and what it said."""
    command = ["python3", str(NOVA_PY), "status", "--json"]
    done = subprocess.run(command, cwd=machine.folder, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


def in_window(cloud: Machine, window: str, keys: str) -> None:
    cloud.shell(f"screen -S mine -p {window} -X stuff {keys}")


# configuration, and whose options are in it; beside them those of oslo's, which all have
OPTIONS = {
    "keystone.conf": ("keystone",),
    "placement.conf": ("placement.conf",),
    "glance-api.conf": ("glance.api", "glance.store", "glance.multi_store"),
    "nova.conf": ("nova.conf", "os_vif"),
    "neutron.conf": (
        *("neutron", "neutron.db", "neutron.ml2", "neutron.ml2.ovn", "neutron.agent", "neutron.base.agent", "neutron.extensions"),
        *("neutron.ovn.metadata.agent", "neutron.metadata.agent", "nova.auth", "placement.auth"),
    ),
}
OSLO = ("log", "messaging", "db", "cache", "policy", "middleware", "concurrency", "privsep", "service.service")
# What is registered under a name of its own: helpers of privsep, stores of glance.
NAMED = re.compile(r"/(helper_command|filesystem_store_datadir) is")


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_one_that_its_program_knows(cloud: Machine, name: str) -> None:
    known = (*OPTIONS[name], "keystonemiddleware.auth_token", *(f"oslo.{each}" for each in OSLO))
    state, tree = "/run/nova.py/state", ("env", "PYTHONPATH=/run/nova.py", "OS_NOVA_DISABLE_EVENTLET_PATCHING=1")
    command = cloud.entered(*tree, f"{state}/env/bin/oslo-config-validator", "--input-file", f"{state}/conf/{name}")
    for each in known:
        command += ["--namespace", each]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "Traceback" not in said, said
    assert [line for line in said.splitlines() if line.startswith("ERROR") and not NAMED.search(line)] == []


def test_all_is_well_and_the_exit_code_says_so(cloud: Machine) -> None:
    said = cloud.nova("status")
    assert "All is well" in said and "session mine" in said
    for window in ("mysql", "vswitchd", "keystone", "compute"):
        assert re.search(rf"^{window} +\d{{4}}-\d\d-\d\d [\d:]{{8}} +0 +[\d,]+ MiB$", said, re.M), said
    assert re.search(r"^glance +http://\S+:9292/ +\d+$", said, re.M), said


def test_equal_memory_is_kept_once(cloud: Machine) -> None:
    folder = Path("/sys/kernel/mm/ksm")
    log = cloud.folder / "nova/state/log/ksm.log"
    if not (cloud.folder / "nova/state/run/ksm.rc").exists() or "left as it is" in log.read_text():
        pytest.skip("this kernel cannot, or it is not for us to say")
    eventually("its rest", lambda: "looked for" in log.read_text(), 600)
    assert (folder / "run").read_text() == "0\n", "it was off before"
    merged = 0  # pages
    for process in psutil.process_iter(["pid"]):
        with contextlib.suppress(OSError):
            if " /run/nova.py " in Path(f"/proc/{process.pid}/mountinfo").read_text():
                merged += int(re.findall(r"^ksm_merging_pages (\d+)", Path(f"/proc/{process.pid}/ksm_stat").read_text(), re.M)[0])
    assert merged * 4096 > 200e6


def test_json_has_times_and_sizes_for_programs(cloud: Machine) -> None:
    code, found = looked(cloud)
    assert (code, found["problems"]) == (0, [])
    compute = next(row for row in found["windows"] if row["window"] == "compute")
    pid = int((cloud.folder / "nova/state/run/compute.pid").read_text())
    process = psutil.Process(int(psutil.Process(pid).children()[0].cmdline()[4]))  # conf/fork waits for it
    assert datetime.fromisoformat(compute["running_since"]) == datetime.fromtimestamp(int(process.create_time()), UTC)
    assert compute["memory"] == pytest.approx(process.memory_full_info().pss, rel=0.2)
    assert {row["service"]: row["state"] for row in found["services"]} == dict.fromkeys(
        ("nova-compute", "nova-conductor", "nova-scheduler"), "up"
    )
    assert datetime.fromisoformat(found["up_since"]) < datetime.now(UTC)


def test_it_changes_nothing(cloud: Machine) -> None:
    """Not even its own log; what services write meanwhile is left out."""
    folder = cloud.folder / "nova"
    state = lambda: {p: p.stat().st_mtime_ns for name in ("run", "conf") for p in (folder / "state" / name).rglob("*")}
    files = lambda: (state(), (folder / "state/log/nova.log").stat().st_size, sorted(os.listdir(folder)), cloud.traces())
    before = files()
    cloud.nova("status")
    assert files() == before


def test_it_does_not_wait_for_a_verb_that_is_at_work(cloud: Machine) -> None:
    with open("/run/nova.py.lock") as lock:
        command = ["flock", str(lock.fileno())]
        subprocess.run(command, pass_fds=[lock.fileno()], check=True)
        assert "another nova.py is at work" in cloud.nova("clean", ok=1)
        assert "All is well" in cloud.nova("status")


@pytest.mark.slow
def test_it_is_quick(cloud: Machine) -> None:
    """On a machine that does nothing else."""
    began = time.monotonic()
    cloud.nova("status")
    assert time.monotonic() - began < 15


def test_instances_and_addresses(cloud: Machine) -> None:
    cloud.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --wait seen")
    address = cloud.floating("seen")
    row = eventually("its addresses", lambda: [r for r in looked(cloud)[1]["instances"] if address in r["addresses"]])[0]
    assert (row["instance"], row["state"]) == ("seen", "ACTIVE")
    (fixed,) = (each for each in row["addresses"] if "." in each and each != address)
    assert {"floating_address": address, "fixed_address": fixed} in looked(cloud)[1]["floating_addresses"]
    assert re.search(rf"^seen +\S+ +ACTIVE +{', '.join(row['addresses'])}$", cloud.nova("status"), re.M)
    cloud.shell(f"openstack server delete --wait seen && openstack floating ip delete {address}")


def test_an_instance_that_went_wrong_is_not_well(cloud: Machine) -> None:
    cloud.shell("openstack flavor create --ram 64 --disk 1000000 --vcpus 1 far-too-large")
    cloud.shell("openstack server create --image ami-tty --flavor far-too-large --network private wrong")
    row = eventually("its error", lambda: [p for p in looked(cloud)[1]["problems"] if p.startswith("wrong ")])
    assert row[0].endswith(": ERROR")
    assert row[0] in cloud.nova("status", ok=1)
    cloud.shell("openstack server delete --wait wrong; openstack flavor delete far-too-large")
    assert looked(cloud)[0] == 0


def test_a_service_that_does_not_run_is_named_with_its_last_line(cloud: Machine) -> None:
    pid = cloud.folder / "nova/state/run/placement.pid"
    in_window(cloud, "placement", r"$'\003'")
    eventually("the end of placement", lambda: not pid.exists())
    said = cloud.nova("status", ok=1)
    assert re.search(r"the window placement has no running service; it said last: \S", said), said
    assert "the API of placement does not answer at http://" in said
    in_window(cloud, "placement", r"$'\e[A\r'")
    eventually("a cloud that is well", lambda: looked(cloud)[0] == 0)


def test_a_restart_is_counted_and_running_since_is_new(cloud: Machine) -> None:
    row = lambda: next(row for row in looked(cloud)[1]["windows"] if row["window"] == "scheduler")
    before = row()
    keeper = psutil.Process(int((cloud.folder / "nova/state/run/scheduler.pid").read_text()))
    keeper.children()[0].kill()
    after = eventually("its restart", lambda: (now := row())["running_since"] and now["restarts"] and now)
    assert after["restarts"] == before["restarts"] + 1
    assert after["running_since"] > before["running_since"]
    eventually("a cloud that is well", lambda: looked(cloud)[0] == 0)


# ---- SCREEN_NAME, SCREEN_STATUS ----


@pytest.fixture
def attached(cloud: Machine) -> Iterator[Terminal]:
    """A terminal that shows the session."""
    screen = Terminal(cloud, "screen", "-x", "mine", "-p", "test")
    yield screen
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(screen.pid, signal.SIGKILL)
        os.waitpid(screen.pid, 0)


def test_without_a_status_line_the_windows_are_not_named(attached: Terminal) -> None:
    attached.type(b"echo is-$((6*7))-there\r")
    attached.wait_for("is-42-there", 20)
    assert "keystone" not in attached.read()
    attached.type(b"\x01:")
    attached.type(b"hardstatus alwayslastline '%-Lw%n %t%+Lw'\r")
    attached.wait_for("keystone", 20)  # what would have been seen
    attached.type(b"\x01:hardstatus off\r")
    attached.type(b"\x01d")
    assert attached.end() == 0


def test_a_second_cloud_is_refused_for_its_ports_and_told_whose_they_are(cloud: Machine) -> None:
    before = cloud.traces()
    said = cloud.nova("run_detached", "two", ok=1, env={"SCREEN_NAME": "two"})
    assert f"port 5000 is in use by the cloud in {cloud.folder}/nova (session mine)" in said
    assert not (cloud.folder / "two").exists()
    assert cloud.traces() == before and looked(cloud)[0] == 0


def test_what_another_folder_has_on_record_is_not_undone_while_this_cloud_is_up(cloud: Machine) -> None:
    two = cloud.folder / "two/state"
    two.mkdir(parents=True)
    (two / "record").write_text("ip link delete br-ex\n")
    for verb in ("scrub", "run_detached"):
        assert f"the cloud in {cloud.folder}/nova (session mine)" in cloud.nova(verb, "two", ok=1, env={"SCREEN_NAME": "two"})
        assert (two / "record").exists() and "br-ex" in cloud.traces()["interfaces"]
    subprocess.run(["rm", "-r", str(two.parent)], check=True)
