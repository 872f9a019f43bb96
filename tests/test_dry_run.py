# SPDX-License-Identifier: Apache-2.0
"""--dry-run: nothing is changed, and what it says is what is then done."""

import difflib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nova

from .conftest import Machine
from .test_verbs import folder, installable, runnable  # noqa: F401

CHANGING = ("branch", "install", "run", "run_detached", "terminate", "clean", "scrub")
Say = Callable[..., str]


def words(verb: str, machine: Machine) -> list[str]:
    """A verb with its arguments."""
    return [verb, *(["pypi:nova"] if verb == "branch" else []), folder(machine)]


def everything(machine: Machine) -> dict[str, object]:
    """All files of the machine, with their contents; links with what they lead to."""
    found = sorted(machine.root.rglob("*"))
    return {str(path): path.readlink() if path.is_symlink() else path.is_dir() or path.read_bytes() for path in found}


@pytest.fixture
def dry_run(runnable: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Say]:  # noqa: F811
    """dry_run(VERB): what it says; nothing of the machine may have changed."""

    def call(verb: str, ok: int = 0) -> str:
        before = everything(runnable)
        with monkeypatch.context() as patched:
            patched.setattr(nova, "DRY_RUN", True)
            patched.setattr(nova.log, "handlers", [])
            assert nova.main(["--dry-run", *words(verb, runnable)]) == ok
        assert everything(runnable) == before
        return capsys.readouterr().out

    return call


def lines(said: str) -> list[str]:
    """Its commands and changes of files: without waiting, the names of steps, and how commands are entered."""
    shown = [line for line in said.splitlines() if re.match(r"(?!#)|# (write|make the folder) ", line)]
    return [re.sub(r"^([A-Z_]+=\S* )*(enter )?", "", line) for line in shown if line]


@pytest.mark.parametrize("verb", CHANGING)
def test_nothing_is_changed_on_a_bare_machine(verb: str, dry_run: Say) -> None:
    dry_run(verb, ok=1 if verb in nova.OF_A_CLOUD else 0)


@pytest.mark.parametrize("verb", CHANGING)
def test_nothing_is_changed_on_one_with_a_cloud(verb: str, dry_run: Say, runnable: Machine) -> None:  # noqa: F811
    assert nova.main(["run_detached", folder(runnable)]) == 0
    runnable.fake("virsh")
    dry_run(verb, ok=1 if verb in ("install", "run", "run_detached", "terminate") else 0)  # it is refused


@pytest.mark.parametrize("verb", ["branch", "install", "run_detached"])
def test_what_it_says_is_what_is_done(
    verb: str,
    dry_run: Say,
    runnable: Machine,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = lines(dry_run(verb))
    caplog.clear()
    assert nova.main(words(verb, runnable)) == 0
    done = lines("\n".join(message[2:] for message in caplog.messages if message.startswith("+ ")))
    done = [re.sub(r"nova-34/\*$", "nova-*/*", line.replace("4242.", "")) for line in done]
    if difference := list(difflib.unified_diff(said, done, "said", "done", "", "", 0)):
        pytest.fail("\n".join(difference))


def entries(text: str) -> dict[str, set[bool]]:
    """Each command, and whether it is one of the cloud's Debian; without what commands read."""
    found = dict[str, set[bool]]()
    for entry, command in re.findall(r"^(?:[A-Z_0-9]+=\S* )*(enter )?(.+)$", text, re.M):
        found.setdefault(command, set()).add(bool(entry))
    return found


def test_what_it_says_is_done_where_it_says(dry_run: Say, runnable: Machine) -> None:  # noqa: F811
    said = entries(dry_run("run_detached").replace(str(runnable.root), ""))
    runnable.calls.unlink()
    assert nova.main(words("run_detached", runnable)) == 0
    done = entries(runnable.transcript("enter "))
    both = said.keys() & done.keys()
    assert {True} in (places := [done[command] for command in both]) and {False} in places
    assert {command for command in both if said[command] != done[command]} == set()


def test_commands_are_a_shells(dry_run: Say, tmp_path: Path, real: Callable[[str], str]) -> None:
    (tmp_path / "said").write_text(dry_run("run_detached"))
    subprocess.run([real("bash"), "-n", str(tmp_path / "said")], check=True)


def test_no_secret_is_said(dry_run: Say, runnable: Machine, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("MYSQL_PASS", "the-mysql-pass")
    assert "the-mysql-pass" not in (first := dry_run("run_detached"))
    assert nova.main(["install", folder(runnable)]) == 0
    again = dry_run("run_detached")
    for secret in nova.passwords(nova.STATE).values():
        assert secret not in first + again
