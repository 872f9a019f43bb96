# SPDX-License-Identifier: Apache-2.0
"""--dry-run on a real machine: each verb changes nothing, says what it then does, and what it says can be pasted."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Machine, eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pasted(machine: Machine) -> Iterator[Machine]:
    """A folder of its own, in which install was not called: what --dry-run said of it was given to a shell."""
    it = Machine(machine.folder / "dry")
    it.folder.mkdir()
    cache = machine.folder / "nova/state/cache/uv"
    before = it.traces()
    said = it.nova("--dry-run", "install")
    assert it.traces() == before and not list(it.folder.iterdir())
    if cache.exists():  # downloads
        shutil.copytree(cache, it.folder / "nova/state/cache/uv", copy_function=lambda old, new: Path(new).hardlink_to(old))
    said = said.replace("propagation slave bash ", "propagation slave bash -ex ")
    done = subprocess.run(["bash"], input=said, cwd=it.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    yield it
    it.nova("scrub")


def lines(said: str) -> list[str]:
    """What changes something, without what differs from call to call."""
    said = re.sub(r" <<END\n.*?\nEND$", "", said, flags=re.M | re.S)
    said = re.sub(r"^([A-Z_]+=\S* )+", "", said, flags=re.M)
    said = re.sub(r"\b\d+\.nova\b", "nova", said)
    said = re.sub(r"^(rm --recursive --force \S+/state/run/).*", r"\1", said, flags=re.M)
    said = re.sub(r"^kill .*\n?", "", said, flags=re.M)
    kept = (
        line for line in said.splitlines() if line and not re.match(r"#|until |exec unshare |\. | *\d+\.\d s |[A-Z_]+=\$\(", line)
    )
    return list(kept)


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


def test_what_was_pasted_is_there(pasted: Machine) -> None:
    state = pasted.folder / "nova/state"
    for name in (
        "env/bin/nova-compute",
        "cache/mysql/mysql/nova_cell1",
        "conf/nova.conf",
        "keystone/fernet/0",
        "../images/root.img",
    ):
        assert (state / name).exists(), name
    known = json.loads((state / "passwords.json").read_text())
    assert len({*known.values()}) == len(known) and {len(secret) for secret in known.values()} == {32}
    assert known["RABBIT_PASS"] in (state / "conf/nova.conf").read_text()


def test_run_detached(pasted: Machine) -> None:
    pasted.nova("install")  # it notes what a shell does not: which files a tree has, and what all was made from
    check(pasted, "run_detached")


def test_a_cloud_that_is_up_stays_as_it_is(pasted: Machine) -> None:
    pasted.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --wait one")
    processes = sorted(pasted.processes())
    pasted.nova("--dry-run", "run_detached", ok=1)
    for verb in ("terminate", "clean", "scrub"):
        pasted.nova("--dry-run", verb)
    assert sorted(pasted.processes()) == processes
    assert [each["Status"] for each in pasted.openstack("server list")] == ["ACTIVE"]


@pytest.mark.parametrize("verb", ["terminate", "clean", "scrub"])
def test_taking_down(pasted: Machine, verb: str) -> None:
    check(pasted, verb)
    if verb == "clean":
        eventually("the end of every process", lambda: not pasted.processes())
