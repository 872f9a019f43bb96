"""A machine as its distribution installs it, looked at from outside, file by file: a cloud changes and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import Machine, eventually
from .fresh import Fresh

pytestmark = pytest.mark.slow
QUIET: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)


@pytest.fixture(scope="module")
def fresh(machine: Machine) -> Iterator[Fresh]:
    """One, for this module."""
    machine.nova("scrub") if (machine.folder / "nova/novarc").exists() else None  # its ports and bridges are this machine's
    with tempfile.TemporaryDirectory(prefix="nova-test-fresh-", dir=Path.home()) as folder:
        it = Fresh(Path(folder))
        try:
            yield it
        finally:
            it.gone()


@pytest.fixture(scope="module")
def before(fresh: Fresh) -> dict[str, str]:
    """Every file of it, before the first command."""
    found = fresh.look()
    assert len(found) > 5000 and "/etc/passwd" in found and "/var/lib/dpkg/status" in found
    return found


def differences(before: dict[str, str], now: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What is not as it was."""
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    return {name: (before.get(name), now.get(name)) for name in sorted(changed)}


def end(run: subprocess.Popen[bytes]) -> None:
    """Kill it, and all that it started."""
    for each in (*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(each.pid, signal.SIGKILL)
    run.wait()


def test_an_install_that_was_killed_left_nothing(fresh: Fresh, before: dict[str, str]) -> None:
    run = subprocess.Popen(fresh.command("python3", "nova.py", "install"), **QUIET)
    status = fresh.root / "root/main/nova/state/root/var/lib/dpkg/status"
    half = lambda: run.poll() is None and len(re.findall("^Status: install ok unpacked", status.read_text(), re.M)) > 20
    eventually("packages that are unpacked and not configured", half, 300)
    end(run)
    assert differences(before, fresh.look()) == {}


def test_nothing_is_installed_while_a_cloud_is_up_and_uninstall_leaves_nothing(fresh: Fresh, before: dict[str, str]) -> None:
    line = "python3 nova.py run_detached && read -r line && python3 nova.py uninstall"
    pipes: Any = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(fresh.command("sh", "-c", line), **pipes) as run:
        up = fresh.root / "root/main/nova/state/run/up"
        eventually("the cloud", lambda: up.exists() or run.poll() is not None, 400)
        here = differences(before, fresh.look())
        said, _ = run.communicate("go on\n", timeout=120)
    assert run.returncode == 0, said
    assert here == {}
    assert differences(before, fresh.look()) == {}
    left = {path.name for path in (fresh.root / "root/main").iterdir()}
    assert ".tool" not in left and ".tool.lock" not in left and "nova" not in left and "nova.py" in left


def test_again_there_is_nothing_to_do(fresh: Fresh, before: dict[str, str]) -> None:
    code, said = fresh.run("python3", "nova.py", "uninstall")
    assert code == 0, said
    assert differences(before, fresh.look()) == {}


def test_something_left_behind_is_seen(fresh: Fresh, before: dict[str, str]) -> None:
    """The comparison can fail."""
    (fresh.root / "etc/left-behind").write_text("by a test")
    assert list(differences(before, fresh.look())) == ["/etc", "/etc/left-behind"][-1:]
