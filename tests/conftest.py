# SPDX-License-Identifier: Apache-2.0
"""A faked machine for the fast tests, and the guard that keeps them from the real one.

machine.root is its "/": nova.py's paths, those of its tables and those in its code, lead there. Its commands are
scripts that write down how they were called. Whatever would reach past it raises Leak, as root too.
"""

import difflib
import json
import os
import platform
import pwd
import re
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import netifaces
import psutil
import pytest
import sh

import nova

# Who starts the tests with & in a script has them ignore Ctrl-C, and what they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

EXPECTED = Path(__file__).parent / "expected"
REAL_PATH = "/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ["PATH"]  # the distribution's own first
REAL_COMMAND, REAL_CALL, REAL_OPEN, REAL_STAT = sh.Command.__init__, sh.Command.__call__, os.open, Path.stat
REAL_GETPWUID = pwd.getpwuid
everybodys_connections = psutil.net_connections


class Leak(BaseException):
    """A test reached for the real machine. Not an Exception: nova.py must not be able to forgive it."""


# ---- The guard ----


class Guard:
    """What a test may touch while it runs: its own folder, its own processes, commands that it named, loopback."""

    folder: Path | None = None  # None: no test is running
    commands: frozenset[str] = frozenset()

    def check(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder and (look := getattr(self, "on_" + event.replace(".", "_"), None)):
            look(*arguments)

    def inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        place = Path(os.path.abspath(os.fsdecode(path)))
        return place.is_relative_to(str(self.folder)) or place.is_relative_to("/dev") or place.parent == EXPECTED

    def writes(self, path: Any, folder: int | None = None) -> None:
        if folder in (None, -1) and not self.inside(path):  # with a folder's descriptor: inside an rmtree that was looked at
            raise Leak(f"a test would change {os.fsdecode(path)}")

    def on_open(self, path: Any, _mode: Any, flags: int) -> None:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            self.writes(path)

    def on_os_mkdir(self, path: Any, _mode: int, folder: int) -> None:
        self.writes(path, folder)

    def on_os_chmod(self, path: Any, _mode: int, folder: int) -> None:
        self.writes(path, folder)

    def on_os_rename(self, old: Any, new: Any, *_folders: int) -> None:
        self.writes(old)
        self.writes(new)

    def on_os_symlink(self, _target: Any, path: Any, folder: int) -> None:
        self.writes(path, folder)

    def on_os_chown(self, path: Any, *_: int) -> None:
        raise Leak(f"a test would give {path} to somebody")

    on_os_remove = on_os_rmdir = on_shutil_rmtree = writes

    def on_os_exec(self, path: Any, *_: Any) -> None:
        if not (self.inside(path) or str(path) in self.commands):
            raise Leak(f"{os.fsdecode(path)} was called and is not faked")

    on_os_posix_spawn = on_subprocess_Popen = on_os_exec

    def on_os_kill(self, pid: int, number: int) -> None:
        if number and os.getpid() not in [p.pid for p in psutil.Process(pid).parents()]:
            raise Leak(f"a test would send a signal to {pid}")

    on_os_killpg = on_os_kill

    def on_socket_connect(self, _socket: Any, address: Any) -> None:
        if not (address[0] == "127.0.0.1" if isinstance(address, tuple) else self.inside(address)):
            raise Leak(f"a test would connect to {address}")


GUARD = Guard()
sys.addaudithook(GUARD.check)


@pytest.fixture
def real() -> Iterator[Callable[[str], str]]:
    """Allow a test one command of the real machine, by name: its path."""

    def allow(name: str) -> str:
        path = shutil.which(name, path=REAL_PATH)
        if not path:
            pytest.skip(f"no {name} here")
        GUARD.commands |= {path, name}
        return path

    yield allow
    GUARD.commands = frozenset()


# ---- The machine ----

# What every fake does first: write down its environment, its words, its input and whether it ran in a folder of its own.
RECORDER = r"""#!/bin/bash
record= pair= text=
while IFS= read -r -d '' pair; do record+=$pair$'\x1f'; done <"/proc/$$/environ"
printf -v pair '%s\x1f' "$0" "$@"
IFS= read -r -t 10 -d '' text
printf '%s' "$record"$'\x1e'"$pair"$'\x1e'"$text"$'\x1d' >>'TRANSCRIPT'
"""
ROUTES = (
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
    "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n"
    "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
)
UIDS = {"root": 0, **nova.NUMBERS}
# What env does: the words behind its options are a command.
ENV = """#!/bin/bash
while [[ $1 == -* || $1 == *=* ]]; do
    case $1 in --chdir=*) [ ! -d "${1#*=}" ] || cd "${1#*=}" ;; [!-]*) export "$1" ;; esac
    shift
done
case $1 in */*) exec "$@" ;; *) exec "COMMANDS/$1" "${@:2}" ;; esac
"""
# What chroot does with ROOTFS: the words behind it are a command, which knows that it was entered so.
CHROOT = """#!/bin/bash
[ "$1" = "ROOTFS" ] || exit 125
export ENTERED=1
case $2 in */*) exec "${@:2}" ;; *) exec "COMMANDS/$2" "${@:3}" ;; esac
"""
ADDRESSES = {"lo": "127.0.0.1", "eth0": "192.0.2.10", "eth1": "198.51.100.7", "eth2": ""}


class Machine:
    """Files below root, commands that only write down how they were called, and who owns what."""

    def __init__(self, folder: Path) -> None:
        self.root, self.commands, self.calls = folder / "machine", folder / "commands", folder / "calls"
        self.absent: set[str] = set()
        self.owners: dict[str, str] = {}
        self.uids: dict[str, int] = {}
        self.memory, self.disk, self.listening = 8.0, 40.0, list[Any]()  # GiB, GiB, psutil's connections
        self.release = {"ID": "debian", "VERSION_ID": "12"}
        self.gateway = "eth0"
        self.addresses = dict(ADDRESSES)
        self.addresses6: dict[str, str] = {}
        self.commands.mkdir()
        folders = "etc usr/sbin run sys/class/net srv"
        for name in folders.split():
            (self.root / name).mkdir(parents=True)
        self.put("/proc/net/route", ROUTES)
        self.put("/proc/self/mountinfo")
        self.put("/dev/net/tun")
        for name in ("all", "default"):
            self.put(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "0\n")

    def path(self, *parts: Any) -> Path:
        """Where a path of the machine really is; a relative path, and one that is already there, stay as they are."""
        path = Path(*parts)
        if not path.is_absolute() or path.is_relative_to(self.root.parent) or path.is_relative_to(nova.HERE):
            return path
        return self.root / path.relative_to("/")

    def open(self, file: Any, mode: str = "r") -> Any:
        """Stands in for nova.py's open."""
        return open(self.path(file) if isinstance(file, str) else file, mode)

    def os_open(self, file: Any, *arguments: Any, **options: Any) -> int:
        """Stands in for os.open, which nova.py's lock is made with."""
        return REAL_OPEN(self.path(file) if str(file).startswith("/run/") else file, *arguments, **options)

    def stat(self, path: Path, follow_symlinks: bool) -> os.stat_result:
        """Stands in for Path.stat: everything is root's but for what was given away."""
        seen = list(REAL_STAT(path, follow_symlinks=follow_symlinks))
        seen[4] = self.uids.get(str(path), 0)
        return os.stat_result(seen)

    def put(self, path: Any, content: str = "") -> Path:
        """A file, and the folders on the way to it."""
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
        return place

    def fake(self, name: Any, script: str = "") -> None:
        """A command: its calls are recorded, then the script (bash; "$text" is its input) runs. A path: just there."""
        place = self.path(name) if "/" in str(name) else self.commands / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(RECORDER.replace("TRANSCRIPT", str(self.calls)) + script + "\n")
        place.chmod(0o755)

    def without(self, *names: str) -> None:
        """Commands that this machine does not have."""
        self.absent |= set(names)

    def has_cloud(self, process: object, folder: str = "/home/me/nova") -> None:
        """This process has a cloud's folder at HOME."""
        self.put(f"/proc/{process}/mountinfo", f"36 35 8:1 {folder} {nova.HOME} rw,relatime - ext4 /dev/sda1 rw\n")

    def give(self, path: Any, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        """Stands in for os.chown."""
        assert not follow_symlinks, "what a user's link leads to would be given away"
        name = next((name for name, number in UIDS.items() if number == uid == gid), str(uid))
        self.owners[str(Path(path)).removeprefix(str(self.root))] = name
        self.uids[str(path)] = uid

    def getpwuid(self, number: int) -> Any:
        """Stands in for pwd.getpwuid: nobody has a number of the cloud's."""
        if number in nova.NUMBERS.values():
            raise KeyError(number)
        return REAL_GETPWUID(number)

    def called(self, enter: str = "") -> list[str]:
        """Every call so far, as shell: what was added to the environment, the words, the input; `enter` before ROOTFS' own."""
        text = self.calls.read_text() if self.calls.exists() else ""
        return [self.line(enter, *record.split("\x1e")) for record in text.split("\x1d")[:-1]]

    def transcript(self, enter: str = "") -> str:
        """The same as one text."""
        return "".join(f"{line}\n" for line in self.called(enter))

    def mounting(self) -> str:
        """What the fake of mount does: a link in the place of an empty folder, on this machine and nowhere else."""
        bind = '[ -d "$3" ] && [ ! -L "$3" ] && /bin/rmdir "$3" && /bin/ln -s "$2" "$3"'
        return f'case "$1$3" in --bind{self.root}/*) {bind};; esac; exit 0'

    def line(self, enter: str, environment: str, words: str, text: str) -> str:
        own = {"PATH", "PWD", "OLDPWD", "SHLVL", "LC_ALL", "XDG_CACHE_HOME", "no_proxy", "COLUMNS", "LINES"}
        own |= {"PYTEST_CURRENT_TEST", "ENTERED"}
        added = [f"{n}={shlex.quote(v)}" for n, _, v in (e.partition("=") for e in environment.split("\x1f")[:-1])
                 if n not in own]  # fmt: skip
        entry = enter if "ENTERED=1" in environment.split("\x1f") else ""
        line = " ".join([*sorted(added), entry + shlex.join(words.split("\x1f")[:-1])])
        line += f" <<< {shlex.quote(text)}" if text else ""
        passwords = nova.STATE / "passwords.json"
        known = json.loads(passwords.read_text()) if passwords.exists() else {}
        places = {"": f"{self.commands}/", "/": f"{self.root}/", "$HERE": str(nova.HERE)}
        for shown, value in (*places.items(), *((f"${name}", value) for name, value in known.items())):
            line = line.replace(value, shown)
        return line

    def netifaces(self) -> Any:
        """Stands in for netifaces."""
        inet, inet6 = netifaces.AF_INET, netifaces.AF_INET6
        found = ((inet, self.addresses), (inet6, self.addresses6))
        return SimpleNamespace(
            AF_INET=inet,
            AF_INET6=inet6,
            interfaces=lambda: list(self.addresses),
            ifaddresses=lambda name: {kind: [{"addr": those[name]}] for kind, those in found if those.get(name)},
            gateways=lambda: {"default": {inet: ("192.0.2.1", self.gateway)}} if self.gateway else {"default": {}},
        )


def moved(value: Any, machine: Machine) -> Any:
    """A table of nova.py with every path in it led to the machine."""
    if isinstance(value, Path):
        return machine.path(value)
    if isinstance(value, str):
        return str(machine.path(value)) if re.fullmatch(r"/[\w./-]+", value) else value.replace("/run/nova.py", str(nova.HOME))
    if isinstance(value, dict):
        return {key: moved(item, machine) for key, item in value.items()}
    if isinstance(value, set):
        return {moved(item, machine) for item in value}
    return tuple(moved(item, machine) for item in value) if type(value) is tuple else value


@pytest.fixture(autouse=True)
def no_other_machine(request: pytest.FixtureRequest) -> None:
    """No test runs without the faked machine but those of tests/machine."""
    if not request.node.get_closest_marker("machine"):
        request.getfixturevalue("machine")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """The faked machine; nova.py sees no other one."""
    machine = Machine(tmp_path)
    monkeypatch.setattr(nova, "HOME", machine.path(nova.HOME))
    for name in ("mkdir", "rm", "rmdir"):  # what they change is of this machine
        inside = f"for word; do case $word in -*|{tmp_path}/*) ;; *) exit 99;; esac; done"
        machine.fake(name, f'{inside}; exec /bin/{name} "$@"')
    for name, value in vars(nova).copy().items():
        if name.isupper() and name not in ("HERE",) and (new := moved(value, machine)) != value:
            monkeypatch.setattr(nova, name, new)
    monkeypatch.setattr(nova, "TOOL", machine.path("/opt/nova.py/.tool"))
    monkeypatch.setattr(nova, "LIBEXEC", machine.path("/opt/nova.py/libexec"))
    monkeypatch.setattr(nova, "Path", machine.path)
    monkeypatch.setattr(nova, "open", machine.open, raising=False)
    monkeypatch.setattr(nova, "netifaces", machine.netifaces())
    monkeypatch.setattr(os, "chown", machine.give)
    monkeypatch.setattr(os, "open", machine.os_open)
    for name in ("apt-get", "touch"):
        machine.fake(name)
    machine.fake("unshare", f'until [ "$1" = screen ]; do shift; done; shift; exec {machine.commands}/screen "$@"')
    machine.fake(str(nova.LIBEXEC / "machine-files.py"))
    for name, script in (("env", ENV), ("chroot", CHROOT)):  # they have no line in transcripts
        (machine.commands / name).write_text(
            script.replace("COMMANDS", str(machine.commands)).replace("ROOTFS", str(nova.ROOTFS))
        )
        (machine.commands / name).chmod(0o755)
    monkeypatch.setattr(pwd, "getpwuid", machine.getpwuid)
    monkeypatch.setattr(nova, "has_owners", lambda place: True)
    monkeypatch.setattr(Path, "stat", lambda path, *, follow_symlinks=True: machine.stat(path, follow_symlinks))
    monkeypatch.setattr(socket, "gethostname", lambda: "testhost")
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: machine.release)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(machine.memory * 2**30)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(machine.disk * 2**30)))
    monkeypatch.setattr(psutil, "net_connections", lambda kind: machine.listening)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(nova, "STEPS", [])
    monkeypatch.setattr(nova, "LOG_FILE", [])
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name in ("no_proxy", "XDG_CACHE_HOME"):  # so that what nova.py puts there is gone after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(machine.commands))
    monkeypatch.setattr(sh.Command, "__init__", lambda *a, **k: command(machine, *a, **k))
    monkeypatch.setattr(sh.Command, "__call__", lambda *a, **k: call(machine, *a, **k))
    monkeypatch.setattr(GUARD, "folder", tmp_path)
    yield machine
    for handler in nova.log.handlers[:]:
        nova.log.removeHandler(handler)
        handler.close()
    nova.cloud.cache_clear()


def recorded() -> list[str]:
    """The commands on record, without how they are entered."""
    entry = shlex.join(nova.entered(())) + " "
    return [line.rpartition("  # ")[0].removeprefix(entry) for line in nova.recorded()]


def faked(machine: Machine, path: str) -> None:
    """A command has to be faked, or known to be absent."""
    place = Path(path) if "/" in path else machine.commands / path
    if path not in machine.absent and not (place.is_relative_to(machine.root.parent) and place.exists()):
        raise Leak(f"{path} was called and is not faked")


def command(machine: Machine, self: sh.Command, path: str, *rest: Any) -> None:
    """sh.Command as it is, for what is faked."""
    faked(machine, path)
    REAL_COMMAND(self, path, *rest)


def call(machine: Machine, self: sh.Command, *words: str, **options: Any) -> Any:
    """A call of it; of what is entered by chroot the command has to be faked as well."""
    if Path(str(self)).name == "chroot":
        faked(machine, words[1])
    return REAL_CALL(self, *words, **options)


@pytest.fixture
def fake(machine: Machine) -> Callable[..., None]:
    """fake(name, script): see Machine.fake."""
    return machine.fake


@pytest.fixture
def cfg(machine: Machine) -> nova.Settings:
    """The default settings, with the cloud's folder where processes see it."""
    folder = machine.path("/home/me/nova")
    for name in ("run", "log"):
        (folder / "state" / name).mkdir(parents=True)
    (folder / "state/log/nova.log").touch()  # by it a folder is known as a cloud's
    nova.HOME.symlink_to(folder)
    return nova.settings_from({"MYSQL_PASS": "the-mysql-pass", "ADMIN_PASSWORD": "the-admin-password"}, str(folder))


# ---- Transcripts ----


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write tests/expected from what the tests saw; then read it")


@pytest.fixture
def expect(machine: Machine, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """expect(name): the calls so far are those of tests/expected/NAME.txt."""

    def compare(name: str) -> None:
        path, seen = EXPECTED / f"{name}.txt", machine.transcript("enter ")
        if request.config.getoption("--accept"):
            path.write_text(seen)
        wanted = path.read_text()
        difference = difflib.unified_diff(wanted.splitlines(), seen.splitlines(), f"expected/{name}", "seen", "", "", 1)
        assert seen == wanted, "\n" + "\n".join(difference)

    return compare


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nova.py does side by side happens in the order in which it stands, so that a transcript can be compared."""
    monkeypatch.setattr(nova, "in_parallel", lambda *functions: [function() for function in functions])
