"""Verbs killed (SIGKILL, the whole process group) at each of their steps: the next call goes on, and gets to the same end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest

from .conftest import NOVA_PY, Machine, ask, eventually

pytestmark = pytest.mark.slow

# The step at whose beginning run_detached is killed, and what is removed first so that the step is needed. Each call finds
# what the one before it left, and comes further; the last one comes to the end.
POINTS = (
    ("Make a Debian",                   "nova/state/root.made-from"),
    ("Fetch nova's source",             "nova/state/tree.json"),
    ("Put it into",                     ""),
    ("Install OpenStack's environment", "nova/state/env"),
    ("Compile OpenStack",               ""),
    ("Make the databases",              "nova/state/cache/mysql.made-from"),
    ("Build the image ami-tty",         "nova/images"),
    ("packages and what they need",     ""),
    ("Empty the databases",             ""),
    ("Create the bridges",              ""),
    ("Start the APIs",                  ""),
    ("Boot an instance",                ""),
)  # fmt: skip


@pytest.fixture(scope="module")
def before(machine: Machine) -> dict[str, object]:
    """The machine without a cloud; what would make a step needless is not there."""
    for path in (machine.folder / removed for _, removed in POINTS if removed):
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return machine.traces()


def test_run_detached_is_killed_at_a_dozen_points_and_called_again(machine: Machine, before: dict[str, object]) -> None:
    for point, _ in POINTS:
        kill_at(machine, point)
    assert "The cloud is up" in machine.nova("run_detached")


def test_taking_down_is_killed_and_called_again(machine: Machine, before: dict[str, object]) -> None:
    machine.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --wait one")
    kill_at(machine, "End the instances", "terminate")
    machine.nova("terminate")
    assert not machine.traces()["domains"] and not machine.traces()["guests"]
    kill_at(machine, "End the session", "clean")
    machine.nova("clean")
    assert machine.processes() == [] and machine.ports() == set()
    kill_at(machine, "Remove bridges", "scrub", 0.1)
    machine.nova("scrub")
    assert machine.traces() == before


def test_without_its_session_a_cloud_is_down_and_says_so(machine: Machine) -> None:
    machine.nova("run_detached")
    session = int(next(line for line in ask("screen", "-ls").splitlines() if ".nova\t" in line).split(".")[0])
    os.kill(session, signal.SIGKILL)
    said = eventually("what status says", lambda: "no running service" in (it := status(machine)) and it)
    assert "the window keystone has no running service" in said and "the API of keystone does not answer" in said
    machine.nova("clean")
    assert machine.processes() == [] and machine.ports() == set()


def status(machine: Machine) -> str:
    """What status says of a cloud that is not well."""
    command = ["python3", str(NOVA_PY), "status"]
    done = subprocess.run(command, cwd=machine.folder, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode == 1 else ""


def kill_at(machine: Machine, point: str, verb: str = "run_detached", seconds: float = 0.4) -> None:
    """Start a verb and kill it when it says that it begins with `point`."""
    command = ["python3", str(NOVA_PY), verb]
    run = subprocess.Popen(command, cwd=machine.folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert run.stderr
    said = []
    for line in run.stderr:
        said.append(line)
        if point in line:
            break
    else:
        pytest.fail(f"it never came to {point!r}:\n{''.join(said)}")
    # A step's first command is at work by the time its line has been read; none of them is over within this.
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(seconds)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
