# SPDX-License-Identifier: Apache-2.0
"""conf/preload.py and conf/fork, for real: what is forked is what was asked for, by whom, and lives as long as who asked."""

import os
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import nova

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="preload is root's: it becomes who asks")

SERVER = """
import pkgutil, sys  # which runpy imports, and another user may not read
sys.path[:0] = [sys.argv[1], "."]
import preload
sys.meta_path.insert(0, preload.Imports())
preload.import_all(("shared", "broken"))
preload.serve("any", 65534, preload.files_now())
"""
TELLS = """
import os, shared, sys
print(shared.times(), os.getcwd(), os.environ['WORD'], sys.argv[1:], sys.stdin.read())
sys.exit(7)
"""
WAITS = "import os, signal, time; print(os.getpid(), flush=True); time.sleep(60)"
WHO = "import os; print(os.getresuid(), os.getresgid(), os.getgroups(), os.access('/proc/self/environ', os.R_OK))"
# how often it was imported is in a file
SHARED = "open('times', 'a').write('x')\ndef times(): return len(open('TIMES').read())\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for all, which everybody may enter: pytest's are not."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "run").mkdir()
        (folder / "shared.py").write_text(SHARED.replace("TIMES", str(folder / "times")))
        (folder / "broken.py").write_text("1 / 0")
        fork = string.Template((nova.HERE / "conf/fork.tmpl").read_text()).substitute(STATE=folder)
        (folder / "fork").write_text(fork)
        yield folder


@pytest.fixture
def server(place: Path, real: Callable[[str], str]) -> Iterator[subprocess.Popen[bytes]]:
    """A preload that has imported the module shared."""
    (place / "server.py").write_text(SERVER)
    words = [real(sys.executable), "-B", str(place / "server.py"), str(nova.HERE / "conf")]
    with open(place / "said", "w") as said, subprocess.Popen(words, cwd=place, stderr=said) as started:
        until((place / "run/preload-any").exists)
        yield started
        started.kill()


@pytest.fixture
def asked(place: Path, server: object, real: Callable[[str], str]) -> Callable[..., Any]:
    """asked(script, words...): a conf/fork that asks for it; `before`: by way of another command."""

    def ask(script: str, *words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        (place / "script").write_text(f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(place)!r})\n{script}\n")
        (place / "script").chmod(0o755)
        line = [*before, real("python3"), "-IS", str(place / "fork"), "any", "script", *words]
        env = {"PATH": f"{place}:{os.environ['PATH']}", "WORD": "hello"}
        pipes: Any = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.Popen(line, cwd=place / "run", env=env, **pipes)

    return ask


def until(true: Callable[[], object]) -> None:
    """Wait for it, ten seconds at most."""
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_fork_is_what_was_asked_for(asked: Any, place: Path) -> None:
    for _ in range(2):
        process = asked(TELLS, "-v", "two words")
        assert process.communicate("typed")[0] == f"1 {place}/run hello ['-v', 'two words'] typed\n"
        assert process.returncode == 7
    assert "ZeroDivisionError" in (place / "said").read_text()  # what cannot be imported is told, and the rest goes on


def test_what_a_service_may_never_need_is_imported_when_it_does(asked: Any, place: Path) -> None:
    (place / "saml2").mkdir()
    (place / "saml2/__init__.py").touch()
    (place / "saml2/sigver.py").write_text("print('imported'); WORD = 'used'")
    (place / "eventlet.py").touch()  # refused, though it is there
    process = asked("from saml2 import sigver; print('not yet'); print(sigver.WORD); import eventlet")
    said = process.communicate()[0].splitlines()
    assert said[:3] == ["not yet", "imported", "used"]
    assert said[-1] == "ModuleNotFoundError: eventlet"


def test_a_fork_that_ends_before_who_asked_looks_is_told_of(asked: Any, place: Path, server: Any) -> None:
    server.send_signal(signal.SIGSTOP)
    process = asked("open('ended', 'w'); sys.exit(7)")
    waits = psutil.Process(process.pid)
    until(lambda: waits.net_connections("unix") and waits.status() == psutil.STATUS_SLEEPING)  # it has asked
    process.send_signal(signal.SIGSTOP)
    server.send_signal(signal.SIGCONT)
    until((place / "run/ended").exists)
    until(lambda: not psutil.Process(server.pid).children())
    process.send_signal(signal.SIGCONT)
    assert process.wait(10) == 7


def test_a_fork_has_the_credentials_of_who_asked_and_no_more(asked: Any, real: Callable[[str], str]) -> None:
    other = (real("setpriv"), "--reuid=65534", "--regid=65534", "--groups=65533")
    assert asked(WHO, before=other).communicate()[0] == "(65534, 65534, 65534) (65534, 65534, 65534) [65533] True\n"


def test_nobody_else_is_answered(asked: Any, place: Path, real: Callable[[str], str]) -> None:
    (place / "run/preload-any").chmod(0o666)  # not even where the file would let him
    process = asked(WHO, before=(real("setpriv"), "--reuid=65533", "--regid=65534", "--clear-groups"))
    assert "did not answer" in process.communicate()[0]
    assert process.returncode == 1


def test_a_fork_that_does_not_end_when_it_is_told_to_ends_with_preload(asked: Any, server: Any) -> None:
    process = asked(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}")
    pid = int(process.stdout.readline())
    server.terminate()
    until(lambda: not runs(pid))


def test_a_fork_and_who_asked_end_at_once(asked: Any, server: Any) -> None:
    pairs = [(process := asked(WAITS), int(process.stdout.readline())) for _ in range(3)]
    server.send_signal(signal.SIGSTOP)
    for process, pid in pairs:
        os.kill(pid, signal.SIGKILL)
        process.kill()
    server.send_signal(signal.SIGCONT)
    assert asked(TELLS).communicate("")[0].startswith("1 ")


def test_a_fork_ends_when_who_asked_is_told_to(asked: Any) -> None:
    process = asked(WAITS)
    pid = int(process.stdout.readline())
    assert pid in [child.pid for child in psutil.Process().children(recursive=True)]  # of preload, not of who asked
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not runs(pid)


def test_a_fork_ends_when_who_asked_is_killed(asked: Any) -> None:
    process = asked(WAITS)
    pid = int(process.stdout.readline())
    process.kill()
    until(lambda: not runs(pid))


def test_a_fork_ends_with_preload_and_who_asked_says_so(asked: Any, server: Any) -> None:
    process = asked(WAITS)
    pid = int(process.stdout.readline())
    server.kill()
    assert process.wait(10) == 1
    until(lambda: not runs(pid))


def test_what_was_edited_since_is_not_forked(asked: Any, place: Path) -> None:
    edited = (place / "shared.py").read_text() + "# edited\n"
    (place / "shared.py").write_text(edited)
    os.utime(place / "shared.py", ns=(1, 1))
    (place / "run/times").write_text("")
    process = asked(TELLS)
    assert process.communicate("")[0].startswith(f"1 {place}/run")  # imported once at first: counted in run now
    assert (place / "run/times").read_text() == "x"


def test_whoever_says_nothing_or_nonsense_disturbs_nobody(asked: Any, place: Path) -> None:
    import socket

    for text in (b"", b"nonsense\n", b"[1]\n", b'{"a": 1}\n', b'{"argv": []}\n', b"[" * 200_000 + b"\n", b"cut off"):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(place / "run/preload-any"))
            caller.sendall(text)
    assert asked(TELLS).communicate("")[0].startswith("1 ")
