"""run_detached killed (SIGKILL, the whole process group) at ten points: the next call gets to the same end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest

from .conftest import NOVA_PY, Machine

# the step at whose beginning it is killed, and what is removed first so that the step is needed
POINTS = (
    ("Fetch nova's source", "nova"),
    ("Put it into", "nova/state/tree.json"),
    ("Install OpenStack's environment", "nova/state/env"),
    ("Compile it", "nova/state/env/made-from"),
    ("Make the databases", "nova/state/cache/mysql.made-from"),
    ("Build the image ami-tty", "nova/images"),
    ("Empty the databases", ""),
    ("Create the bridges", ""),
    ("Start the APIs", ""),
    ("Boot an instance", ""),
)


@pytest.mark.slow
@pytest.mark.parametrize("point, removed", POINTS, ids=[point for point, _ in POINTS])
def test_killed_and_called_again(machine: Machine, point: str, removed: str) -> None:
    path = machine.folder / removed if removed else None
    if path and path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kill_at(machine, point)
    assert "The cloud is up" in machine.nova("run_detached")
    machine.nova("clean")
    assert machine.processes() == [] and machine.ports() == set()


def kill_at(machine: Machine, point: str) -> None:
    """Start run_detached and kill it when it says that it begins with `point`."""
    command = ["python3", str(NOVA_PY), "run_detached"]
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
        run.wait(0.4)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
