"""run, as a person calls it, in a terminal: detached from, attached to, left for good; and Ctrl-C in the middle."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from .conftest import NOVA_PY, Machine


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, machine: Machine, *command: str) -> None:
        self.said = ""
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.chdir(machine.folder)
            os.environ["TERM"] = "xterm"
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 220, 0, 0))  # wide enough for every window
            os.execvp(command[0], command)

    def read(self) -> str:
        """All that it said until now."""
        while select.select([self.file], [], [], 0.1)[0]:
            try:
                self.said += os.read(self.file, 65536).decode(errors="replace")
            except OSError:  # it has ended
                break
        return self.said

    def wait_for(self, words: str, seconds: float) -> None:
        """Until these words are on the screen; its end before that is a failure."""
        deadline = time.monotonic() + seconds
        while words not in self.read():
            assert time.monotonic() < deadline, f"no {words!r} within {seconds} s:\n{self.said[-2000:]}"
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), f"it ended before {words!r}:\n{self.said[-2000:]}"

    def type(self, keys: bytes) -> None:
        os.write(self.file, keys)

    def end(self, seconds: float = 60) -> int:
        """Its exit code, once it has ended by itself."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        pytest.fail(f"it did not end within {seconds} s:\n{self.said[-2000:]}")


@pytest.fixture
def terminal(machine: Machine) -> Iterator[Callable[..., Terminal]]:
    """Makes terminals; whatever they still run when the test ends is ended."""
    made: list[Terminal] = []

    def make(*command: str) -> Terminal:
        made.append(Terminal(machine, *command))
        return made[-1]

    yield make
    for each in made:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(each.pid, signal.SIGKILL)
            os.waitpid(each.pid, 0)


RUN = ("python3", str(NOVA_PY), "run")


def test_run_shows_the_session_and_detaching_keeps_the_cloud(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    screen = terminal(*RUN)
    screen.wait_for("The cloud is up", 400)
    screen.wait_for("keystone", 20)  # the status line names the windows
    screen.type(b"echo $OS_USERNAME-is-here\n")
    screen.wait_for("admin-is-here", 20)  # the window test: in another one nobody would answer
    screen.type(b"\x01d")
    assert screen.end() == 0
    assert "The cloud stays" in screen.said and "nova.py attach" in screen.said
    assert machine.openstack("network list")


def test_coming_back_and_leaving_for_good(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("screen", "-x", "nova")
    screen.wait_for("keystone", 20)
    screen.type(b"\x01d")
    assert screen.end() == 0
    machine.nova("clean")


def test_when_the_session_ends_terminate_and_clean_follow(machine: Machine, terminal: Callable[..., Terminal]) -> None:
    before = machine.traces()
    screen = terminal(*RUN)
    screen.wait_for("The cloud is up", 400)
    screen.wait_for("keystone", 20)
    subprocess.run(["screen", "-S", "nova", "-X", "quit"], check=True)
    assert screen.end(90) == 0
    assert "End the instances" in screen.said and "End the session" in screen.said
    assert machine.processes() == [] and machine.ports() == set()
    assert machine.traces()["merging"] == before["merging"], "it was looking, and is not to go on for nobody"


@pytest.mark.parametrize("point", ["Empty the databases", "Start the APIs", "Boot an instance"])
def test_ctrl_c_says_how_things_are_and_the_next_call_goes_on(
    machine: Machine, terminal: Callable[..., Terminal], point: str
) -> None:
    screen = terminal(*RUN[:2], "run_detached")
    screen.wait_for(point, 400)
    screen.type(b"\x03")
    assert screen.end() == 130
    assert "interrupted" in screen.said and "run_detached can be called again" in screen.said
    machine.nova("clean")
    assert machine.processes() == []


def test_the_dry_run_of_a_first_run_says_all_of_it_and_touches_nothing(machine: Machine) -> None:
    if (machine.folder / "nova/novarc").exists():
        machine.nova("scrub")  # with its bridges there it would be refused
    folder = machine.folder / "first"
    folder.mkdir()
    command = ["python3", str(NOVA_PY), "--dry-run", "run_detached"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = [f"{NOVA_PY.parent}/libexec/make-root ", "enter dpkg ", "screen -t compute ", "# by OpenStack's APIs: "]
    assert [words for words in said if words not in done.stdout] == []
    folder.rmdir()


def test_two_at_once_the_second_is_refused(machine: Machine) -> None:
    run = subprocess.Popen(
        ["python3", str(NOVA_PY), "run_detached"], cwd=machine.folder, stderr=subprocess.PIPE, start_new_session=True
    )
    assert run.stderr
    assert b" s  " in run.stderr.readline(), "its first step"
    assert f"another nova.py is at work: run_detached, pid {run.pid}" in machine.nova("clean", ok=1)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    machine.nova("scrub")


def test_a_caller_outside_of_this_container_is_no_reason_to_see_nothing_mounted() -> None:
    asked = f"import sys; sys.path.insert(0, {str(NOVA_PY.parent)!r}); import nova"
    asked += "; print(len(nova.lines_of(nova.CALLER + '/mountinfo')))"
    said = subprocess.run(["unshare", "--pid", "--fork", sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert int(said.stdout) > 0
