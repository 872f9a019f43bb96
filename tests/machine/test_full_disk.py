# SPDX-License-Identifier: Apache-2.0
"""The cloud's disk fills up: during install, during run, and before an instance is booted. Freed, everything goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import NOVA_PY, Machine, eventually

pytestmark = pytest.mark.slow


class Disk:
    """A file system of 6 GiB, in a file that takes no more room than what is really written."""

    def __init__(self, folder: Path) -> None:
        self.file, self.place = folder / "disk", folder / "small"
        self.filler = self.place / "filler"

    def fill(self, left: int = 16) -> None:
        """All of it is taken, but for so many MiB."""
        free = os.statvfs(self.place)
        subprocess.run(["fallocate", "-l", str(free.f_bavail * free.f_frsize - (left << 20)), str(self.filler)], check=True)

    def free(self) -> None:
        self.filler.unlink()


@pytest.fixture(scope="module")
def disk(machine: Machine) -> Iterator[Disk]:
    it = Disk(machine.folder)
    it.place.mkdir()
    subprocess.run(["truncate", "--size=6G", str(it.file)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(it.file)], check=True)
    subprocess.run(["mount", "-o", "loop", str(it.file), str(it.place)], check=True)
    (machine.folder / "on-small").mkdir()
    yield it
    for verb in ("terminate", "clean", "scrub"):
        machine.nova(verb, "small/nova")
    subprocess.run(["umount", str(it.place)], check=True)
    it.file.unlink()


def until(machine: Machine, disk: Disk, *words: str, at: str) -> str:
    """Call nova.py, and fill the disk when it begins with a step; what it said. It failed."""
    command = ["python3", str(NOVA_PY), *words, "small/nova"]
    run = subprocess.Popen(command, cwd=machine.folder, stderr=subprocess.PIPE, text=True)
    assert run.stderr
    said = ""
    for line in run.stderr:
        said += line
        if at in line and not disk.filler.exists():
            disk.fill()
    assert run.wait() == 1, said
    return said


@pytest.mark.parametrize("verb, step", [("install", "Install OpenStack's environment"), ("run_detached", "Start the APIs")])
def test_full_while_a_verb_is_at_work(machine: Machine, disk: Disk, verb: str, step: str) -> None:
    said = until(machine, disk, verb, at=step)
    place = machine.folder / "small/nova"
    assert f"  full: {place} (" in said and "make room (4 GiB for install, 1 GiB for a cloud), then repeat" in said
    assert "Traceback" not in said and "Logging error" not in said
    again = machine.nova(verb, "small/nova", ok=1)
    assert "GiB of disk free" in again, "refused before anything is touched"
    disk.free()


@pytest.fixture(scope="module")
def up(machine: Machine, disk: Disk) -> Machine:
    """The next call goes on: a cloud."""
    assert "The cloud is up" in machine.nova("run_detached", "small/nova")
    (machine.folder / "small/nova/novarc").exists()
    return machine


def shell(up: Machine, line: str) -> str:
    line = f". small/nova/novarc && {line}"
    return subprocess.run(["bash", "-c", line], cwd=up.folder, capture_output=True, text=True, check=False, timeout=300).stdout


def status(up: Machine, name: str) -> str:
    return shell(up, f"openstack server show {name} -f value -c status").strip()


BOOT = "openstack server create --image ami-tty --flavor m1.tiny --network private"


def test_full_when_an_instance_is_booted(up: Machine, disk: Disk) -> None:
    shell(up, f"{BOOT} --wait before")
    assert status(up, "before") == "ACTIVE"
    disk.fill()
    shell(up, f"{BOOT} full")
    eventually("what becomes of it", lambda: status(up, "full") == "ERROR", 120)
    assert "No space left on device" in shell(up, "openstack server show full -c fault")
    disk.free()
    eventually("an instance", lambda: shell(up, f"{BOOT} --wait after") or status(up, "after") == "ACTIVE", 120)
    assert (status(up, "before"), status(up, "after")) == ("ACTIVE", "ACTIVE")
    shell(up, "openstack server delete --wait full")
    assert "All is well" in up.nova("status", "small/nova")
