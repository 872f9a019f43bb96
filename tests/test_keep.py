# SPDX-License-Identifier: Apache-2.0
"""conf/keep, the supervisor in every window, for real: what it starts again, what it notes, what it leaves."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import nova

Keep = Callable[..., subprocess.Popen[bytes]]


def eventually(what: Callable[[], object]) -> None:
    """Wait until it is true; the test fails where that takes far too long."""
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


@pytest.fixture
def keep(real: Callable[[str], str], tmp_path: Path) -> Iterator[Keep]:
    """Start keep for a shell's line. Its pauses are as long as `pause` takes; `slow`: on a machine that is busy."""
    (tmp_path / "run").mkdir()
    (tmp_path / "bin").mkdir()
    sleep = tmp_path / "bin/sleep"
    started = []

    def start(line: str, user: str = "root", pause: str = "exit 0", slow: bool = False) -> subprocess.Popen[bytes]:
        sleep.write_text(f'#!/bin/sh\necho "$1" >>{tmp_path}/pauses\n{pause}\n')
        sleep.chmod(0o755)
        words = [real("bash"), str(nova.HERE / "conf/keep"), "w", user, "/bin/bash", "-c", line]
        (tmp_path / "slowly").write_text("trap '[[ $BASH_COMMAND != kill* ]] || /bin/sleep 0.1' DEBUG\n" if slow else "")
        env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "BASH_ENV": f"{tmp_path}/slowly"}
        started.append(subprocess.Popen(words, cwd=tmp_path, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            keeper = psutil.Process(process.pid)
            keeper.suspend()  # or it would start more while these end
            for each in reversed(keeper.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            process.kill()
        process.communicate()


def ends(process: subprocess.Popen[bytes]) -> bytes:
    """What it said until it ended."""
    return process.communicate(timeout=20)[0]


def named(process: subprocess.Popen[bytes], *names: str) -> list[psutil.Process]:
    """What runs below it by these names; others end while they are looked at."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [each] if each.name() in names else []
    return found


def pid_in(path: Path) -> int:
    eventually(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_command_that_dies_is_started_again_after_growing_pauses(keep: Keep, tmp_path: Path) -> None:
    process = keep(f"echo >>{tmp_path}/lives; exit 3")
    eventually(lambda: (tmp_path / "lives").exists() and len((tmp_path / "lives").read_text()) >= 9)
    process.terminate()
    ends(process)
    assert (tmp_path / "pauses").read_text().split()[:8] == ["1", "2", "4", "8", "16", "32", "60", "60"]


def test_a_death_is_noted_and_said(keep: Keep, tmp_path: Path) -> None:
    process = keep("exit 3", pause="exec /bin/sleep 60", slow=True)
    eventually((tmp_path / "pauses").exists)
    process.terminate()
    noted = (tmp_path / "run/w.died").read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d w: exit code 3 after \d s, again in 1 s\n", noted)
    assert noted in ends(process).decode()


def test_a_command_that_was_killed_is_noted_with_its_signal(keep: Keep, tmp_path: Path) -> None:
    keep("exec /bin/sh -c 'kill -KILL $$'", pause="exec /bin/sleep 60", slow=True)
    eventually(lambda: (tmp_path / "run/w.died").exists() and (tmp_path / "run/w.died").stat().st_size)
    assert "exit code 137 " in (tmp_path / "run/w.died").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_is_passed_on_and_nothing_is_left(keep: Keep, tmp_path: Path, number: int) -> None:
    told = f"trap 'echo told >{tmp_path}/told; exit 0' TERM"
    process = keep(f"{told}; echo $$ >{tmp_path}/child; while :; do /bin/sleep 0.05; done")
    child = pid_in(tmp_path / "child")
    os.kill(process.pid, number)
    ends(process)
    assert (tmp_path / "told").read_text() == "told\n"
    assert gone(child)
    assert not (tmp_path / "run/w.died").exists()  # it was asked for, so it is no death
    assert not (tmp_path / "run/w.pid").exists()


def test_the_end_waits_for_a_command_that_takes_its_time(keep: Keep, tmp_path: Path) -> None:
    process = keep(f"trap '/bin/sleep 0.5; echo >{tmp_path}/done; exit 0' TERM; echo $$ >{tmp_path}/child; read -r")
    pid_in(tmp_path / "child")
    process.terminate()
    process.wait(20)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("again", [False, True], ids=["after ten seconds", "when it is told again"])
def test_what_does_not_end_is_killed(keep: Keep, tmp_path: Path, again: bool) -> None:
    process = keep(f"trap '' TERM; echo $$ >{tmp_path}/child; while :; do /bin/sleep 0.05; done")
    child, began = pid_in(tmp_path / "child"), time.monotonic()
    process.terminate()
    if again:
        eventually(lambda: named(process, "timeout", "tail"))
        time.sleep(1)
        assert not gone(child), "it has ten seconds"
        process.terminate()
    ends(process)
    assert gone(child)
    assert time.monotonic() - began < 9 if again else 9 < time.monotonic() - began < 19
    assert not (tmp_path / "run/w.died").exists() and not (tmp_path / "run/w.pid").exists()


def test_the_end_in_a_pause_comes_at_once(keep: Keep, tmp_path: Path) -> None:
    process = keep("exit 1", pause=f"echo $$ >{tmp_path}/sleeper; exec /bin/sleep 60")
    sleeper = pid_in(tmp_path / "sleeper")
    process.terminate()
    ends(process)
    eventually(lambda: gone(sleeper))


def test_it_says_who_it_is_while_it_runs(keep: Keep, tmp_path: Path) -> None:
    process = keep("read -r")
    assert pid_in(tmp_path / "run/w.pid") == process.pid


def test_the_command_reads_what_is_typed(keep: Keep, tmp_path: Path) -> None:
    process = keep(f"read -r line; echo got $line >{tmp_path}/got; read -r")
    assert process.stdin
    process.stdin.write(b"typed\n")
    process.stdin.flush()
    eventually((tmp_path / "got").exists)
    eventually(lambda: (tmp_path / "got").read_text() == "got typed\n")


@pytest.mark.parametrize(
    "user, options",
    [
        ("nova-py", "--reuid=nova-py --regid=nova-py --groups=nova-py"),
        ("nova-py:root-too,disks", "--reuid=nova-py --regid=root-too --groups=root-too,disks"),
    ],
)
def test_another_user_is_entered_by_setpriv(keep: Keep, tmp_path: Path, user: str, options: str) -> None:
    setpriv = tmp_path / "bin/setpriv"
    (tmp_path / "bin").mkdir(exist_ok=True)
    setpriv.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/who\nexec /bin/sleep 60\n')
    setpriv.chmod(0o755)
    process = keep("exit 0", user=user)
    eventually(lambda: (tmp_path / "who").exists() and (tmp_path / "who").read_text())
    who = f"--pdeathsig=TERM {options} /bin/bash -c"
    assert (tmp_path / "who").read_text().startswith(who)
    process.terminate()
    ends(process)


def test_what_has_to_be_done_again_is_tried_until_it_succeeds(keep: Keep, tmp_path: Path) -> None:
    """Not at the first start: then nova.py does it."""
    (tmp_path / "log").mkdir()
    (tmp_path / "bin").mkdir(exist_ok=True)
    again, times = tmp_path / "bin/again", tmp_path / "times"
    again.write_text(f"#!/bin/sh\necho $1 >>{times}; [ $(wc -l <{times}) = 3 ]\n")
    again.chmod(0o755)
    lives = tmp_path / "lives"
    keep(f"echo >>{lives}; [ $(wc -l <{lives}) = 1 ] || exec /bin/sleep 60")
    eventually(lambda: times.exists() and times.read_text() == "w\nw\nw\n")
    assert lives.read_text() == "\n\n"


def test_killed_it_takes_its_command_along_and_is_followed_by_another(
    real: Callable[[str], str], tmp_path: Path, cfg: nova.Settings
) -> None:
    """As the window's shell calls it, until its file is gone: conf/window.tmpl, clean."""
    window = nova.render((nova.HERE / "conf/window.tmpl").read_text(), cfg)
    function = next(line for line in window.splitlines() if line.startswith("keep()"))
    for name in ("run", "log", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin/keep").symlink_to(nova.HERE / "conf/keep")
    line = f"{function}\nkeep w root /bin/bash -c 'echo $$ >>children; exec /bin/sleep 60'; echo over >over"
    shell = subprocess.Popen([real("bash"), "-c", line], cwd=tmp_path, env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"})
    children = lambda: (tmp_path / "children").read_text().split() if (tmp_path / "children").exists() else []
    try:
        eventually(lambda: len(children()) == 1)
        os.kill(pid_in(tmp_path / "run/w.pid"), signal.SIGKILL)
        eventually(lambda: gone(int(children()[0])) and len(children()) == 2)
        second = pid_in(tmp_path / "run/w.pid")
        (tmp_path / "run/w.pid").unlink()
        os.kill(second, signal.SIGKILL)
        eventually(lambda: gone(int(children()[1])) and (tmp_path / "over").exists())
        assert len(children()) == 2
    finally:
        shell.kill()
        shell.communicate()
