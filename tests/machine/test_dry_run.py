# SPDX-License-Identifier: Apache-2.0
"""--dry-run on a real machine: each verb changes nothing, and says what it then does."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Machine, eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dry(machine: Machine) -> Iterator[Machine]:
    """A folder of its own, in which install was called, first with --dry-run: that made nothing."""
    it = Machine(machine.folder / "dry")
    it.folder.mkdir()
    cache = machine.folder / "nova/state/cache/uv"
    before = it.traces()
    it.nova("--dry-run", "install")
    assert it.traces() == before and not list(it.folder.iterdir())
    if cache.exists():  # downloads
        shutil.copytree(cache, it.folder / "nova/state/cache/uv", copy_function=lambda old, new: Path(new).hardlink_to(old))
        (it.folder / "nova/state/settings.json").write_text("{}")  # or it is nobody's folder
    it.nova("install")
    yield it
    it.nova("scrub")


def lines(said: str) -> list[str]:
    """What changes something, without what differs from call to call."""
    said = re.sub(r"^([A-Z_]+=\S* )*(enter )?", "", said, flags=re.M)
    said = re.sub(r"\b\d+\.nova\b", "nova", said)
    said = re.sub(r"^(rm --recursive --force \S+/state/run/).*", r"\1", said, flags=re.M)
    said = re.sub(r"^kill .*\n?", "", said, flags=re.M)
    own = r"#|This deletes | *\d+\.\d s |(POST|PUT|DELETE) http|ssh-keygen "  # the last two are the APIs' and the smoke test's
    return [line for line in said.splitlines() if line and not re.match(own, line)]


def check(machine: Machine, verb: str) -> None:
    """The verb, first with --dry-run: that changes nothing, and says what the verb does."""
    log = machine.folder / "nova/state/log/nova.log"
    before, known = machine.traces(), log.read_text() if log.exists() else ""
    said = lines(machine.nova("--dry-run", verb))
    assert machine.traces() == before
    assert (log.read_text() if log.exists() else "") == known
    machine.nova(verb)
    entries = re.split(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", log.read_text().removeprefix(known), flags=re.M)
    done = lines("\n".join(entry[2:] for entry in entries if entry.startswith("+ ")))
    if difference := list(difflib.unified_diff(sorted(said), sorted(done), "said", "done", "", "", 1)):  # some go side by side
        pytest.fail("\n".join(difference))


def test_run_detached(dry: Machine) -> None:
    check(dry, "run_detached")


def test_a_cloud_that_is_up_stays_as_it_is(dry: Machine) -> None:
    dry.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --wait one")
    processes = sorted(dry.processes())
    dry.nova("--dry-run", "run_detached", ok=1)
    for verb in ("terminate", "clean", "scrub"):
        dry.nova("--dry-run", verb)
    assert sorted(dry.processes()) == processes
    assert [each["Status"] for each in dry.openstack("server list")] == ["ACTIVE"]


@pytest.mark.parametrize("verb", ["terminate", "clean", "scrub"])
def test_taking_down(dry: Machine, verb: str) -> None:
    check(dry, verb)
    if verb == "clean":
        eventually("the end of every process", lambda: not dry.processes())
