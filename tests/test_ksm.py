# SPDX-License-Identifier: Apache-2.0
"""Equal memory kept once: who has the kernel look for it, for how long, and what is put back."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import nova

from .conftest import Machine, recorded
from .test_keep import eventually
from .test_verbs import SESSION, Fake

Ksm = Callable[[], subprocess.Popen[str]]
SCRIPT = (nova.HERE / "conf/ksm").read_text()


@pytest.fixture
def kernel(machine: Machine) -> Path:
    """What a kernel with KSM, switched off, has for it; and `idle`, hundredths of each second, of all its processors."""
    for name, value in dict(run=0, pages_to_scan=100, smart_scan=1, full_scans=7, pages_sharing=0, idle=200).items():
        machine.put(nova.KSM / name, f"{value}\n")
    return nova.KSM


def values(kernel: Path) -> tuple[str, str]:
    return (kernel / "run").read_text().strip(), (kernel / "pages_to_scan").read_text().strip()


@pytest.fixture
def ksm(kernel: Path, real: Callable[[str], str], tmp_path: Path) -> Iterator[Ksm]:
    """Starts conf/ksm, which finds the kernel of the test."""
    began = list[subprocess.Popen[str]]()

    def start() -> subprocess.Popen[str]:
        script = SCRIPT.replace("/sys/kernel/mm/ksm &&", f"{kernel} &&")
        script = script.replace("/proc/stat", f" <(echo cpu 0 0 0 $((SECONDS * $(<{kernel}/idle))))")
        assert str(kernel) in script and "SECONDS *" in script
        words = [real("bash"), "-c", script, "ksm", str(tmp_path / "was")]
        env = {"PATH": "/usr/bin:/bin"}
        began.append(subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return began[-1]

    yield start
    for each in began:
        if each.poll() is None:
            os.killpg(each.pid, signal.SIGKILL)
        each.communicate()


def test_it_looks_four_times_and_rests(kernel: Path, ksm: Ksm) -> None:
    script = ksm()
    eventually(lambda: values(kernel) == ("1", "500"))
    (kernel / "full_scans").write_text("10\n")
    time.sleep(1.5)  # it looks once a second
    assert values(kernel) == ("1", "500")
    (kernel / "pages_sharing").write_text("4711\n")
    (kernel / "full_scans").write_text("11\n")
    assert script.stdout is not None
    assert "4711 pages" in script.stdout.readline()
    assert values(kernel) == ("0", "100")
    assert script.poll() is None, "it rests: a window whose service ended is one that died"
    (kernel / "run").write_text("1\n")  # the machine's owner, meanwhile
    script.terminate()
    script.wait(5)
    assert values(kernel) == ("1", "100")


def test_it_looks_only_while_processors_are_idle(kernel: Path, ksm: Ksm) -> None:
    (kernel / "idle").write_text("10\n")
    ksm()
    eventually(lambda: values(kernel)[1] == "500")
    time.sleep(3)
    assert values(kernel) == ("0", "500")
    (kernel / "idle").write_text("60\n")
    eventually(lambda: values(kernel) == ("1", "500"))
    (kernel / "idle").write_text("0\n")
    eventually(lambda: values(kernel) == ("0", "500"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_it_puts_back_what_it_set(kernel: Path, ksm: Ksm, number: int) -> None:
    script = ksm()
    eventually(lambda: values(kernel) == ("1", "500"))
    script.send_signal(number)
    script.communicate(timeout=5)  # it, and all that it started
    assert values(kernel) == ("0", "100")


def test_killed_while_it_puts_back_it_leaves_what_scrub_knows(kernel: Path, ksm: Ksm, tmp_path: Path) -> None:
    script, was = ksm(), tmp_path / "was"
    eventually(lambda: values(kernel) == ("1", "500"))
    was.unlink()
    os.mkfifo(was)  # there it stands, until the fixture kills it
    script.terminate()
    eventually(lambda: values(kernel)[0] == "0")
    assert script.poll() is None


def test_killed_and_started_again_it_still_knows_what_was(kernel: Path, ksm: Ksm) -> None:
    script = ksm()
    eventually(lambda: values(kernel) == ("1", "500"))
    os.killpg(script.pid, signal.SIGKILL)
    script.wait(5)
    assert values(kernel) == ("1", "500")
    again, scans = ksm(), itertools.count(20)
    eventually(lambda: (kernel / "full_scans").write_text(f"{next(scans)}\n") and values(kernel) == ("0", "100"))
    again.terminate()
    again.wait(5)
    assert values(kernel) == ("0", "100")


def test_what_the_owner_switched_on_is_left_as_it_is(kernel: Path, ksm: Ksm) -> None:
    (kernel / "run").write_text("1\n")
    script = ksm()
    assert script.stdout is not None
    assert "left as it is" in script.stdout.readline()
    script.terminate()
    script.wait(5)
    assert values(kernel) == ("1", "100")


@pytest.mark.parametrize(
    "states",
    [
        (("0", "100"), ("0", "100"), ("0", "100")),
        (("0", "70"), ("1", "500"), ("0", "70")),  # cut off
        (("0", "100"), ("1", "100"), ("1", "100")),  # the owner switched it on meanwhile
        (("1", "200"), ("0", "200"), ("0", "200")),  # the owner's before, and then switched off
    ],
)
def test_scrub_would_put_it_back_too(
    cfg: nova.Settings, fake: Fake, machine: Machine, kernel: Path, states: list[tuple[str, str]]
) -> None:
    before, then, after = states

    def put(state: tuple[str, str]) -> None:
        for name, text in zip(("run", "pages_to_scan"), state, strict=True):
            (kernel / name).write_text(f"{text}\n")

    put(before)
    fake("screen", SESSION)
    nova.merge_memory(cfg)
    assert "screen -t ksm" in machine.transcript()
    assert len(recorded()) == (before[0] == "0")
    put(then)
    fake("sh", 'PATH=/usr/bin:/bin exec /bin/sh "$@"')
    nova.undo_recorded()
    assert values(kernel) == after


def test_without_it_nothing_is_asked_for(cfg: nova.Settings, fake: Fake, machine: Machine, kernel: Path) -> None:
    fake("screen", SESSION)
    nova.merge_memory(nova.replace(cfg, USE_KSM=False))
    (kernel / "run").unlink()  # a kernel that has none, or does not let us
    nova.merge_memory(cfg)
    assert not recorded() and "ksm" not in machine.transcript()


def test_its_window_is_there_where_the_kernel_can(cfg: nova.Settings, kernel: Path) -> None:
    windows = lambda: [window.name for window in nova.windows(cfg)]
    assert windows()[-1] == "ksm"
    (kernel / "run").unlink()
    assert "ksm" not in windows()
