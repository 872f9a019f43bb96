# SPDX-License-Identifier: Apache-2.0
"""What goes wrong: the exact words, the exit code, and what is left behind."""

import functools
import http.server
import logging
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import nova

from .conftest import Machine, everybodys_connections

Fake = Callable[..., None]
NOBODY = 65534
VERBS = [name for name in nova.VERBS if name != "settings"]


def failure(function: Callable[..., object], *arguments: object, **options: object) -> nova.Failure:
    with pytest.raises(nova.Failure) as caught:
        function(*arguments, **options)
    return caught.value


# ---- do ----


def test_a_command_that_the_machine_does_not_have_is_named(machine: Machine) -> None:
    machine.without("modprobe")
    assert str(failure(nova.do_outside, "modprobe", "kvm")) == "this machine has no modprobe"


@pytest.mark.parametrize("hint", ["", "what to do"])
def test_a_command_that_rootfs_does_not_have_fails_by_its_name(machine: Machine, hint: str) -> None:
    machine.without("virsh")
    said = failure(nova.do, "virsh", "list", hint=hint)
    assert (str(said).split()[:2], said.hint) == (["virsh", "list"], hint or "sudo python3 nova.py install")


def test_commands_are_rootfs_own_but_for_those_outside(fake: Fake, machine: Machine) -> None:
    for name in ("chroot", "setpriv", "ip"):
        fake(name)
    nova.do("ip", "link", "set", "br-ex", "up", user=nova.USER)
    nova.ask("ip", "link")
    nova.do_outside("ip", "route")
    nova.ask("ip", "address", outside=True)
    assert machine.called() == [
        f"chroot /run/nova.py/state/root setpriv --reuid={nova.USER} --regid={nova.USER} --init-groups ip link set br-ex up",
        "chroot /run/nova.py/state/root ip link",
        "ip route",
        "ip address",
    ]


@pytest.mark.parametrize("outside", [True, False])
def test_the_callers_folder_for_temporary_files_is_no_commands(
    fake: Fake, machine: Machine, monkeypatch: pytest.MonkeyPatch, outside: bool
) -> None:
    monkeypatch.setenv("TMPDIR", "/home/me/tmp")
    fake("where", 'echo "${TMPDIR-none} $LC_ALL"')
    assert nova.ask("where", outside=outside) == "none C.UTF-8"


def test_a_failed_command_can_be_pasted_and_shows_its_code_and_last_lines(fake: Fake) -> None:
    fake("broken", 'for i in $(/usr/bin/seq 30); do echo "line $i"; done; echo why >&2; exit 3')
    said = failure(nova.do, "broken", "two words", "$HOME")
    assert str(said) == "broken 'two words' '$HOME'\n  ended with exit code 3"
    assert said.tail == (*(f"line {i}" for i in range(12, 31)), "why")


def test_a_command_of_another_user_can_be_pasted_too(fake: Fake) -> None:
    fake("setpriv", "exit 4")
    said = failure(nova.do, "broken", user="somebody")
    assert str(said).splitlines()[0] == "setpriv --reuid=somebody --regid=somebody --init-groups broken"


def test_everything_a_command_says_is_logged(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    fake("talk", "echo out; echo err >&2")
    with caplog.at_level(logging.DEBUG, "nova.py"):
        nova.do("talk", "a b", env={"PASSWORD": "secret"}, text="secret")
    assert caplog.messages == ["+ talk 'a b'", "  out", "  err"]


def test_a_command_that_reads_its_input_does_not_hang(fake: Fake) -> None:
    fake("reader", "read -t 5 -r line; [ $? = 1 ]")  # 1: the end of input; more than 128: waited in vain
    nova.do("reader")
    nova.ask("reader")


def test_a_command_has_no_terminal(fake: Fake) -> None:
    fake("pager", "[ ! -t 0 ] && [ ! -t 1 ] && [ ! -t 2 ]")
    nova.do("pager")


def test_a_command_runs_where_it_is_told_and_else_at_the_root(fake: Fake, tmp_path: Path) -> None:
    fake("where", '[ "$PWD" = "$1" ]')
    nova.do("where", "/")
    nova.do("where", tmp_path, cwd=tmp_path)


def test_empty_and_false_words_are_not_lost(fake: Fake, machine: Machine) -> None:
    fake("count")
    nova.do("count", "", None, False, 0)
    assert machine.called() == ["count '' None False 0"]


# ---- ask ----


def test_ask_says_what_the_command_said_on_its_error_output(fake: Fake) -> None:
    fake("broken", "echo not this; echo this >&2; exit 2")
    said = failure(nova.ask, "broken", "a b")
    assert (str(said), said.tail) == ("broken 'a b' failed", ("this",))


def test_ask_of_what_is_not_installed(machine: Machine) -> None:
    machine.without("virsh")
    assert failure(functools.partial(nova.ask, outside=True), "virsh").tail == ("it is not installed",)
    said = failure(nova.ask, "virsh")
    assert str(said) == "virsh failed" and "virsh" in said.tail[-1]


def test_asks_default_stands_for_every_failure(fake: Fake, machine: Machine) -> None:
    machine.without("virsh")
    fake("broken", "echo something; exit 2")
    assert (nova.ask("virsh", default="none"), nova.ask("broken", default="")) == ("none", "")


def test_ask_takes_the_codes_that_are_no_failure(fake: Fake) -> None:
    fake("looks", "echo found nothing; exit 1")
    assert nova.ask("looks", ok=(0, 1)) == "found nothing"


# ---- Ctrl-C, at any moment of a command, tells nova.py once and leaves neither it nor the command hanging ----

COMMANDS = """
import os, signal, sys
import nova
signal.signal(signal.SIGINT, nova.interrupt)
pid, each = os.getpid(), lambda: (nova.carry_out(["true"]), nova.ask("true", outside=True), nova.carry_out(["sleep", "0.01"]))
while True:
    try:
        print("ready", flush=True)
        while True:
            nova.in_parallel(each, each, each) if sys.argv[1:] else each()
    except KeyboardInterrupt:
        assert os.getpid() == pid, "a fork went on as a second one"
        nova.ask("true", outside=True)
"""


@pytest.mark.parametrize("parallel", [[], ["parallel"]], ids=["one after the other", "in parallel"])
def test_ctrl_c_in_the_middle_of_commands(real: Callable[[str], str], parallel: list[str]) -> None:
    words = [real(sys.executable), "-c", COMMANDS, *parallel]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(words[0], words, {"PYTHONPATH": str(nova.HERE), "PATH": os.defpath})
    said = b""
    try:
        for number in range(1, 61):
            deadline = time.monotonic() + 20
            while said.count(b"ready") < number:
                assert time.monotonic() < deadline, f"hangs after {number - 1}: {said.decode()}"
                try:
                    said += os.read(terminal, 65536) if select.select([terminal], [], [], 1)[0] else b""
                except OSError:
                    pytest.fail(f"it ended: {said.decode()}")
            time.sleep(number * 37 % 50 / 1000)  # not a wait: another moment each time
            os.write(terminal, b"\x03")
        assert said.replace(b"^C", b"").split() == [b"ready"] * 60
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


# ---- Steps and failures ----


def test_a_failure_is_told_with_its_step(capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
    nova.LOG_FILE[:] = [Path("/home/me/nova/state/log/nova.log")]
    with pytest.raises(nova.Failure) as caught, nova.step("Do the outer"), nova.step("Do the inner"):
        raise nova.Failure("broken 1\n  ended with exit code 3", "mend it", ("one", "two"))
    capsys.readouterr()
    assert nova.tell_failure(caught.value) == 1
    assert capsys.readouterr().err.splitlines() == [
        "",
        "nova.py stopped at: Do the inner",
        "nova.py: broken 1",
        "  ended with exit code 3",
        "    | one",
        "    | two",
        "  mend it",
        "  everything it did: /home/me/nova/state/log/nova.log",
    ]


def test_an_error_of_the_apis_is_told_like_the_others() -> None:
    with pytest.raises(nova.Failure) as caught, nova.step("Create networks"):
        raise ValueError("Conflict (409)")
    assert (str(caught.value), caught.value.during) == ("ValueError: Conflict (409)", "Create networks")


def test_of_two_side_by_side_the_failure_is_raised_when_both_ended() -> None:
    ended = []

    def slow() -> None:
        time.sleep(0.1)
        ended.append("slow")

    assert str(failure(nova.in_parallel, lambda: failing("first"), slow)) == "first"
    assert ended == ["slow"]


def failing(message: str) -> None:
    raise nova.Failure(message)


# ---- wait_for ----


def test_the_time_is_up_and_the_last_error_is_told() -> None:
    said = failure(nova.wait_for, "the API", lambda: 1 / 0, 0.3)
    assert str(said) == "the API is not ready after 0 s (ZeroDivisionError: division by zero)"


def test_the_time_is_up_without_an_error() -> None:
    assert str(failure(nova.wait_for, "the API", lambda: False, 0.1)).endswith("(it never answered)")


def test_what_comes_up_late_is_waited_for() -> None:
    looks = iter([False, False, True])
    nova.wait_for("the API", lambda: next(looks), 30)


def test_a_failure_in_the_probe_ends_the_wait() -> None:
    assert str(failure(nova.wait_for, "the instance", lambda: failing("No valid host"), 30)) == "No valid host"


def test_the_death_of_a_window_ends_the_wait_at_once(cfg: nova.Settings, machine: Machine) -> None:
    machine.put(nova.STATE / "run/api.died", "2026-11-21T10:00:00 api: exit code 1 after 0 s, again in 1 s\n")
    machine.put(nova.STATE / "log/api.log", "".join(f"{i}\n" for i in range(20)) + "\x1b[31mred\x1b[0m\r\n\n  why\n")
    window = nova.Window("api", "control", "service", "", ready="127.0.0.1:1")
    began = time.monotonic()
    said = failure(functools.partial(nova.wait_for_windows, seconds=60), cfg, [window])
    assert time.monotonic() - began < 10
    assert str(said).endswith("died: 2026-11-21T10:00:00 api: exit code 1 after 0 s, again in 1 s")
    assert said.tail == (*map(str, range(10, 20)), "red", "why")


def test_a_service_without_a_place_is_not_waited_for(cfg: nova.Settings) -> None:
    nova.wait_for_windows(cfg, [nova.Window("compute", "compute", "root", "nova-compute")], seconds=0)


# ---- What answers ----


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()
        self.wfile.write(b"content")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """A real HTTP server that answers /CODE with that code."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("code", "answers"), [(200, True), (300, True), (401, True), (404, True), (500, False), (503, False)])
def test_an_api_that_says_no_has_answered(site: str, code: int, answers: bool) -> None:
    assert nova.answers(f"{site}/{code}") == answers


def test_a_port_answers_while_somebody_listens(site: str) -> None:
    place = site.removeprefix("http://")
    assert nova.answers(place)
    assert not nova.answers(f"127.0.0.1:{free_port()}")


def test_a_socket_answers_while_somebody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not nova.answers(str(tmp_path / "sock"))
    monkeypatch.chdir(tmp_path)  # sockets' paths must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        listener.listen()
        monkeypatch.setattr(nova.socket.socket, "connect", lambda s, place: socket.socket.connect_ex(s, "sock"), raising=False)
        assert nova.answers(str(tmp_path / "sock"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- Checks before a run ----


def test_too_little_memory(cfg: nova.Settings, machine: Machine) -> None:
    machine.memory = 2.9
    assert str(failure(nova.check_machine, cfg)) == "2.9 GiB of memory free, and a cloud needs 3"
    machine.memory = 3
    nova.check_machine(cfg)


@pytest.mark.parametrize(("installed", "free", "needed"), [(False, 3.5, 4), (True, 0.5, 1), (True, 3.5, 0), (False, 4, 0)])
def test_too_little_disk(cfg: nova.Settings, machine: Machine, installed: bool, free: float, needed: int) -> None:
    if installed:
        machine.put(cfg.DIR / "state/env/made-from")
    machine.disk = free
    if not needed:
        nova.check_machine(cfg)
        return
    assert str(failure(nova.check_machine, cfg)) == f"{free} GiB of disk free at {cfg.DIR}, and a cloud needs {needed}"


def test_a_machine_that_is_too_small_is_left_as_it_is(machine: Machine, tmp_path: Path) -> None:
    machine.memory = 1
    assert nova.main(["install", str(tmp_path / "new")]) == 1
    assert not (tmp_path / "new").exists()
    assert machine.called() == []


def test_no_tun_device(cfg: nova.Settings, machine: Machine) -> None:
    machine.path("/dev/net/tun").unlink()
    said = failure(nova.check_machine, cfg)
    assert str(said) == "no /dev/net/tun: instances could not be wired"
    assert "container" in said.hint


def test_without_apt_the_debian_is_made_by_mmdebstrap(cfg: nova.Settings, machine: Machine) -> None:
    (machine.commands / "apt-get").unlink()
    said = failure(nova.check_machine, cfg)
    assert str(said) == "neither apt-get nor mmdebstrap is here to make a Debian in DIR with"
    machine.fake("mmdebstrap")
    nova.check_machine(cfg)


@pytest.mark.parametrize(("flag", "word"), [(os.ST_NOEXEC, "noexec"), (os.ST_NOSUID, "nosuid"), (os.ST_RDONLY, "read-only")])
def test_a_file_system_that_cannot_hold_programs(
    cfg: nova.Settings, monkeypatch: pytest.MonkeyPatch, flag: int, word: str
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_flag=flag))
    said = failure(nova.check_file_system, nova.HOME)
    assert f"is on a file system that is mounted {word}, and" in str(said)
    assert said.code == 2


def test_a_file_system_without_owners(cfg: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "has_owners", lambda place: False)
    assert "is on a file system whose files have no owners, and" in str(failure(nova.check_file_system, nova.HOME))


@pytest.mark.parametrize("name", ["br-int", "br-ex", "ovs-netdev"])
def test_somebody_elses_bridge(cfg: nova.Settings, machine: Machine, name: str) -> None:
    machine.addresses[name] = ""
    assert str(failure(nova.check_machine, cfg)) == f"this machine has an interface {name}, and a cloud makes its own"


@pytest.mark.parametrize("cloud", ["", "/home/you/nova"])
def test_a_port_in_use_names_who_has_it(
    cfg: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch, cloud: str
) -> None:
    machine.put(f"/proc/{os.getpid()}/mountinfo")
    if cloud:
        machine.has_cloud(os.getpid(), cloud)
        machine.put(f"/proc/{os.getpid()}/root/{nova.HOME}/state/settings.json", '{"SCREEN_NAME": "theirs"}')
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        machine.listening = [c for c in everybodys_connections("tcp") if c.pid == os.getpid()]
        window = {"name": "mine", "wave": "control", "user": "service", "command": "", "ready": f"127.0.0.1:{port}"}
        monkeypatch.setattr(nova, "SERVICES", {"mine": nova.Service("mine", window=(window,))})
        machine.put(f"/proc/{os.getpid()}/comm", "theirs\n")
        who = f"the cloud in {cloud} (session theirs)" if cloud else f"theirs, pid {os.getpid()}"
        assert str(failure(nova.check_ports, cfg)) == f"port {port} is in use by {who}"
    machine.listening = [c for c in everybodys_connections("tcp") if c.pid == os.getpid()]
    nova.check_ports(cfg)


def test_every_port_of_a_cloud_is_looked_at(cfg: nova.Settings, machine: Machine) -> None:
    for port in (5000, 8774, 8775, 8778, 9292, 9696, *(nova.PATHS[f"{n}_PORT"] for n in ("RABBIT", "RABBIT_DIST", "EPMD"))):
        machine.listening = [SimpleNamespace(status=psutil.CONN_LISTEN, pid=None, laddr=SimpleNamespace(port=port))]
        assert str(failure(nova.check_ports, cfg)).startswith(f"port {port} is in use by ")


def test_the_ports_of_consoles_are_looked_at_where_they_are_asked_for(cfg: nova.Settings, machine: Machine) -> None:
    for port in (6080, 6083, 26000, 26999):
        machine.listening = [SimpleNamespace(status=psutil.CONN_LISTEN, pid=None, laddr=SimpleNamespace(port=port))]
        nova.check_ports(cfg)
        assert str(failure(nova.check_ports, replace(cfg, CONSOLES=True))).startswith(f"port {port} is in use by ")


# ---- Files ----


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    nova.write_file(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(nova, "give", lambda *_: failing("disk full"))
        failure(nova.write_file, path, "new")
    assert path.read_text() == "old"
    nova.write_file(path, b"new")  # what was left of the attempt is in nobody's way
    assert path.read_text() == "new"
    assert list(tmp_path.glob("file*")) == [path]


def test_a_secret_is_readable_for_nobody_at_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    see = lambda path, *_: modes.append(os.stat(path).st_mode & 0o777)
    monkeypatch.setattr(os, "fchmod", see)  # so that it is seen how the file was made
    monkeypatch.setattr(nova, "give", see)
    nova.write_file(tmp_path / "secret", "s", 0o600)
    assert [*modes, (tmp_path / "secret").stat().st_mode & 0o777] == [0o600] * 3


def test_a_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        nova.write_file(tmp_path / "file", "", 0o755)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o755


# ---- The command line ----


@pytest.mark.parametrize(
    "verb", [v for v in VERBS if v not in ("branch", "install", "run", "run_detached", "shell", "uninstall")]
)
def test_a_folder_without_a_cloud_is_left_alone(
    machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    assert nova.main([verb, str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"nova.py: no cloud in {tmp_path}/nowhere",
        f"  go to the folder where it was made, or name it: nova.py {verb} DIR",
    ]
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["clean", "a", "b"], "a b"),
        (["branch", "a", "b", "c"], "a b c"),
        (["settings", "a"], "a"),
        (["run", "--force"], "--force"),
    ],
)
def test_more_words_than_a_verb_takes(capsys: pytest.CaptureFixture[str], words: list[str], extra: str) -> None:
    assert nova.main(words) == 2
    assert capsys.readouterr().err == f"nova.py: {words[0]} does not take {extra}; see: python3 nova.py --help\n"


def test_a_refused_setting_ends_with_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_IPV6", "yes")
    assert nova.main(["run"]) == 2
    assert capsys.readouterr().err == "nova.py: USE_IPV6=yes: say 0 or 1\n"


def test_two_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with nova.only_one("install"):
        assert nova.main(["clean", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"nova.py: another nova.py is at work: install, pid {os.getpid()}",
        "  wait for it, or end it",
    ]
    with nova.only_one("clean"):
        pass


def test_ctrl_c(machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(cfg: nova.Settings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(nova.VERBS, "clean", interrupted)
    monkeypatch.setattr(nova, "prepare_folder", lambda cfg, verb: None)
    assert nova.main(["clean"]) == 130
    assert capsys.readouterr().err == "\nnova.py: interrupted; no service runs. clean can be called again.\n"


def full(*_: object) -> None:
    raise OSError(28, "No space left on device", "/a/file")


def test_a_disk_that_is_full_is_told_in_a_line(
    machine: Machine, fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("mount")
    folder = machine.path("/home/me/nova")
    monkeypatch.setitem(nova.VERBS, "install", full)
    assert nova.main(["install", str(folder)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "nova.py: [Errno 28] No space left on device: '/a/file'",
        f"  everything it did: {folder}/state/log/nova.log",
    ]
    assert "Traceback" in (folder / "state/log/nova.log").read_text()


@pytest.mark.parametrize("where", ["settings_of_run", "only_one", "prepare_folder"])
def test_an_error_before_there_is_a_log_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(nova.log, "propagate", False)  # to pytest: as a user has it, nobody listens yet
    monkeypatch.setattr(nova, where, full)
    assert nova.main(["clean"]) == 1
    assert capsys.readouterr().err == "nova.py: [Errno 28] No space left on device: '/a/file'\n"


@pytest.mark.parametrize("verb", ["install", "clean"])
def test_apis_are_not_asked_through_a_proxy(cfg: nova.Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    nova.make_folders(nova.replace(cfg, HOST_IP="198.51.100.7"))
    fake("mount")
    monkeypatch.setenv("HOST_IP", "198.51.100.7" if verb == "install" else "")
    monkeypatch.setenv("no_proxy", "example.org")
    seen = []
    monkeypatch.setitem(nova.VERBS, verb, lambda cfg: seen.append(os.environ["no_proxy"].split(",")))
    assert nova.main([verb, str(cfg.DIR)]) == 0
    assert set(seen[0]) == {"127.0.0.1", "198.51.100.7", "example.org"}


@pytest.mark.parametrize("verb", ["install", "clean"])
def test_a_state_that_is_not_roots_is_not_used(
    cfg: nova.Settings, machine: Machine, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    machine.uids[str(cfg.DIR / "state")] = 1000
    assert nova.main([verb, str(cfg.DIR)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"nova.py: Refusing to use {cfg.DIR}/state (it is not root's, so it may hold anything)",
        "  remove it first",
    ]
    assert [p.name for p in (cfg.DIR / "state/log").parent.iterdir() if p.name != "log"] == ["run"]
    assert machine.called() == []


@pytest.mark.parametrize("target", ["etc", "nowhere"])
def test_a_state_that_leads_elsewhere_is_not_used(machine: Machine, tmp_path: Path, target: str) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/state").symlink_to(machine.root / target)
    assert nova.main(["install", str(tmp_path / "new")]) == 1
    assert not (machine.root / target / "log").exists()
    assert machine.called() == []


def at_work() -> bool:
    """Would another verb be refused now?"""
    try:
        with nova.only_one("clean"):
            return False
    except nova.Failure:
        return True


def test_run_is_not_at_work_while_its_session_is_shown(
    cfg: nova.Settings, machine: Machine, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("mount")
    fake("screen")
    seen = []
    for name in ("run_detached", "session", "terminate", "clean"):
        monkeypatch.setattr(nova, name, lambda *_, name=name: seen.append((name, at_work())))
    (nova.STATE / "run/up").touch()
    assert nova.main(["run", str(cfg.DIR)]) == 0
    assert seen == [
        ("run_detached", True), ("session", False), ("session", False), ("terminate", True), ("clean", True),
    ]  # fmt: skip


@pytest.mark.parametrize("verb", [v for v in VERBS if v not in ("run", "status", "attach", "shell")])
def test_every_other_verb_is_at_work_until_its_end(
    cfg: nova.Settings, fake: Fake, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    fake("mount")
    seen = []
    monkeypatch.setitem(nova.VERBS, verb, lambda *_: seen.append(at_work()))
    assert nova.main([verb, *(["pypi:nova"] * (verb == "branch")), str(cfg.DIR)]) == 0
    assert (seen, at_work()) == ([True], False)


# ---- bootstrap ----


@pytest.mark.parametrize("root", [True, False])
def test_what_root_mounts_nobody_else_sees_and_it_keeps_nobodys_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: bool
) -> None:
    (tmp_path / ".tool/env/bin").mkdir(parents=True)
    for name in ("uv.lock", ".tool/made-from", ".tool/env/bin/python"):
        (tmp_path / name).write_text("the same")
    monkeypatch.setattr(nova, "HERE", tmp_path)
    monkeypatch.setattr(nova, "TOOL", tmp_path / ".tool")
    monkeypatch.setattr(nova.sys, "argv", ["nova.py", "clean", "two words"])
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda name, words: seen.append([name, *words[1:]]))
    monkeypatch.setenv("NOVA_PY_PRIVATE", "")
    nova.bootstrap()
    own = [f"{tmp_path}/.tool/env/bin/python", f"{tmp_path}/nova.py", "clean", "two words"]
    assert seen == [["unshare", "--mount", "--propagation", "slave", *own] if root else own]
    nova.bootstrap()  # what was started again goes on
    assert len(seen) == 1


# python3, as far as libexec/make-tool needs it
PYTHON = """#!/bin/bash
echo "$1" >>calls
case $1 in -) /bin/ln -s /bin/true .tool/uv ;; *) : >.tool/uv.whl ;; esac
"""


def test_two_first_calls_make_the_environment_once(tmp_path: Path, real: Callable[[str], str]) -> None:
    (tmp_path / "libexec").mkdir()
    (tmp_path / "uv.lock").write_text("the lock")
    shutil.copy(nova.HERE / "libexec/make-tool", tmp_path / "libexec/make-tool")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    words = [real("bash"), str(tmp_path / "libexec/make-tool"), str(tmp_path / "python")]
    both = [subprocess.Popen(words, env={"PATH": os.defpath}, stderr=subprocess.PIPE) for _ in "ab"]
    assert [one.communicate()[1] for one in both] == [b"", b""]
    assert (tmp_path / "calls").read_text().split() == ["libexec/fetch-release.py", "-"]
    assert (tmp_path / ".tool/made-from").read_text() == "the lock"


def test_a_folder_that_is_a_file_is_told_without_a_traceback(
    machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert nova.main(["install", str(tmp_path / "file")]) in (1, 2)
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_folder_of_somebodys_is_not_used(machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis").write_text("years of work")
    assert nova.main(["run", str(tmp_path / "mine")]) == 1
    assert f"Refusing to use {tmp_path}/mine (it holds thesis)" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis"]


def test_the_log_has_everything_with_the_time(machine: Machine, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake("mount", "echo said by mount; exit 32")
    nova.HOME.mkdir()
    folder = machine.path("/home/me/nova")
    assert nova.main(["install", str(folder)]) == 1
    log = (folder / "state/log/nova.log").read_text().splitlines()
    said = [line.split(" ", 2)[2] for line in log]
    assert said[-2:] == [f"+ mount --bind {folder} {nova.HOME}", "  said by mount"]
    assert [line for line in said if not line.startswith("+ ")] == said[-1:]
    assert capsys.readouterr().err.splitlines()[-1] == f"  everything it did: {folder}/state/log/nova.log"


# ---- nova.py as a program: what it does before it needs its environment ----


@pytest.fixture
def nova_py(real: Callable[[str], str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run nova.py with the distribution's interpreter, as users do, and by default as nobody."""
    python = real("python3")

    def run(*words: str, user: int = NOBODY) -> subprocess.CompletedProcess[str]:
        who = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 and user else {}
        line = [python, "-B", "-", *words]
        # Read from standard input, since nobody may not be able to read the folder. The rest of nova.py is cut off:
        # whatever comes this far would begin to change the machine.
        source = (nova.HERE / "nova.py").read_text().partition("    bootstrap()\n")[0] + "    sys.exit(99)\n"
        source = source.replace("Path(__file__)", "Path('nova.py')")
        return subprocess.run(line, input=source, capture_output=True, text=True, check=False, cwd="/", **who)  # type: ignore[call-overload,no-any-return]

    return run


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["run", "--help"], ["-v", "help"]])
def test_help(nova_py: Callable[..., subprocess.CompletedProcess[str]], words: list[str]) -> None:
    done = nova_py(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (nova.__doc__ or "").rstrip() + "\n"


@pytest.mark.parametrize(
    ("words", "first"),
    [([], "nova.py: which verb?"), (["-v"], "nova.py: which verb?"), (["runn"], "nova.py: no verb 'runn'"),
     (["usage"], "nova.py: no verb 'usage'"), (["--run"], "nova.py: no verb '--run'")],
)  # fmt: skip
def test_no_such_verb(nova_py: Callable[..., subprocess.CompletedProcess[str]], words: list[str], first: str) -> None:
    done = nova_py(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{first}\n\n{(nova.__doc__ or '').rstrip()}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_not_root(nova_py: Callable[..., subprocess.CompletedProcess[str]], verb: str) -> None:
    done = nova_py("-v", verb, "a", "b")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"nova.py: {verb} needs root: sudo python3 nova.py -v {verb} a b\n"


def test_settings_needs_no_root(nova_py: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert nova_py("settings").returncode == 99


@pytest.mark.skipif(os.geteuid() != 0, reason="is not root")
def test_root_is_let_through(nova_py: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert nova_py("run", user=0).returncode == 99


@pytest.mark.parametrize("call", [nova.do, nova.ask])
def test_a_command_that_heard_ctrl_c_first_is_ctrl_c(fake: Fake, call: Callable[..., object]) -> None:
    fake("hears", "kill -INT $$")
    with pytest.raises(KeyboardInterrupt):
        call("hears")


# ---- Full disks ----


def test_a_failure_names_the_disk_that_is_full(cfg: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the command made of it, a hint about the network included."""
    room = lambda path: SimpleNamespace(free=(1 << 20) if "instances" in str(path) else 1 << 40)
    monkeypatch.setattr(nova.shutil, "disk_usage", room)
    monkeypatch.setattr(nova, "nearest", lambda path: path)

    def fails(error: Exception, chosen: nova.Settings) -> None:
        with nova.telling_full_disks(chosen):
            raise error

    chosen = replace(cfg, INSTANCES_PATH="/srv/instances")
    for error in (nova.Failure("uv failed", nova.NETWORK, ("No space left",)), OSError(28, "No space left on device")):
        said = failure(fails, error, chosen)
        assert said.hint.startswith("full: /srv/instances (1 MiB free); make room") and str(said) == str(error)
    assert failure(fails, nova.Failure("no such setting", code=2), chosen).hint == ""
    assert failure(fails, nova.Failure("uv failed", nova.NETWORK), cfg).hint == nova.NETWORK
