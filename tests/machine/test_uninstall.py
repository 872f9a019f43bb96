"""uninstall on a machine as its distribution installs it: looked at from outside, it is as before the first command."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def fresh(machine: Machine) -> Iterator[Fresh]:
    """One, for this module."""
    machine.nova("clean") if (machine.folder / "nova/state").exists() else None  # its ports are this machine's
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


def differences(before: dict[str, str], now: dict[str, str], but: str = "^$") -> dict[str, tuple[str | None, str | None]]:
    """What is not as it was; `but`: what was done by others."""
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    return {name: (before.get(name), now.get(name)) for name in sorted(changed) if not re.search(but, name)}


BY_APT = "^/var/(cache|lib)/apt/|^/var/lib/dpkg/available"  # by the user's own calls of it


def test_an_install_that_was_killed_is_taken_back(fresh: Fresh, before: dict[str, str]) -> None:
    quiet: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    run = subprocess.Popen(fresh.command("python3", "nova.py", "install"), **quiet)
    status = fresh.root / "var/lib/dpkg/status"
    half = lambda: run.poll() is None and len(re.findall("^Status: install ok unpacked", status.read_text(), re.M)) > 20
    eventually("packages that are unpacked and not configured", half, 300)
    for each in (*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)):
        os.kill(each.pid, signal.SIGKILL)
    run.wait()
    code, said = fresh.run("python3", "nova.py", "uninstall", "--keep-cache")
    assert code == 0, said
    assert differences(before, fresh.look()) == {}


def test_what_others_need_by_now_stays_and_is_told(fresh: Fresh, before: dict[str, str]) -> None:
    code, said = fresh.run("python3", "nova.py", "install")
    assert code == 0, said
    code, said = fresh.run("apt-get", "install", "-y", "--no-install-recommends", "autossh")
    assert code == 0, said
    code, said = fresh.run("python3", "nova.py", "uninstall", "--keep-cache")
    assert code == 1 and "openssh-client stays: autossh needs it" in said
    assert re.search(r"^packages +openssh-client +- +installed", said, re.M)
    assert re.search(r"^packages +autossh +- +installed", said, re.M) and "screen" not in said
    assert fresh.run("dpkg", "--audit") == (0, "")


def test_the_next_uninstall_goes_on_and_leaves_nothing(fresh: Fresh, before: dict[str, str]) -> None:
    code, said = fresh.run("apt-get", "purge", "-y", "autossh")
    assert code == 0, said
    code, said = fresh.run("python3", "nova.py", "uninstall")
    assert code == 0, said
    assert differences(before, fresh.look(), BY_APT) == {}
    left = {path.name for path in (fresh.root / "root/main").iterdir()}
    assert ".tool" not in left and ".tool.lock" not in left and "nova" not in left and "nova.py" in left


def test_again_there_is_nothing_to_do(fresh: Fresh, before: dict[str, str]) -> None:
    code, said = fresh.run("python3", "nova.py", "uninstall")
    assert code == 0, said
    assert differences(before, fresh.look(), BY_APT) == {}


def test_something_left_behind_is_found(fresh: Fresh, before: dict[str, str]) -> None:
    """The comparison can fail."""
    code, said = fresh.run("python3", "nova.py", "branch")
    assert code == 0, said
    (fresh.root / "etc/left-behind").write_text("by a test")
    code, said = fresh.run("python3", "nova.py", "uninstall")
    assert code == 1 and "1 things are not as they were" in said
    assert re.search(r"^files +/etc/left-behind +- +100644 0:0 \w+$", said, re.M)
