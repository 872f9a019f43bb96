# SPDX-License-Identifier: Apache-2.0
"""The guard of conftest.py itself: a test that would touch the real machine fails, whatever nova.py forgives."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import nova

from .conftest import Leak, Machine

REACHES: dict[str, Callable[[], object]] = {
    "a command": lambda: nova.do("true"),
    "a command by its path": lambda: nova.do("/bin/true"),
    "a command that may fail": lambda: nova.ask("true", default=""),
    "a command that is forgiven": lambda: nova.forgiven(nova.do, "true"),
    "a command beside another": lambda: nova.in_parallel(lambda: nova.do("true"), lambda: None),
    "a program by subprocess": lambda: subprocess.run(["/bin/true"], check=False),
    "a file": lambda: Path("/etc/leak").write_text(""),
    "a file's removal": lambda: os.unlink("/etc/leak"),
    "a folder": lambda: os.mkdir("/etc/leak"),
    "a tree's removal": lambda: shutil.rmtree("/etc/leak"),
    "a file's new name": lambda: os.rename("/etc/leak", "/etc/leaked"),
    "another's process": lambda: os.kill(os.getppid(), signal.SIGCONT),
    "another machine": lambda: nova.answers("192.0.2.10:80"),
    "a socket of the machine": lambda: nova.answers("/run/leak"),
}


@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_reaching_for_the_real_machine_fails(reach: Callable[[], object]) -> None:
    with pytest.raises(Leak):
        reach()


def test_paths_lead_to_the_faked_machine(machine: Machine) -> None:
    paths = [nova.HOME, nova.STATE, nova.ENV, nova.CONF, nova.PATHS["BIN"], nova.ROOTFS, nova.CLONE]
    assert [p for p in paths if not p.is_relative_to(machine.root)] == []
    assert Path(__file__).parents[1] == nova.HERE


def test_a_fake_records_how_it_was_called(machine: Machine) -> None:
    machine.fake("greet", 'echo "hello $1: $text"')
    nova.do("greet", "two words", "", nova.STATE, text="in\nput", env={"HOW": "a b"})
    assert machine.transcript() == "HOW='a b' greet 'two words' '' /run/nova.py/state <<< 'in\nput'\n"
    assert nova.ask("greet", "you") == "hello you:"


def test_a_named_command_is_allowed(real: Callable[[str], str]) -> None:
    assert subprocess.run([real("true")], check=False).returncode == 0
    with pytest.raises(Leak):
        subprocess.run([sys.executable, "-c", ""], check=False)
