# SPDX-License-Identifier: Apache-2.0
"""A cloud that is kept: stopped, started, refused, and what is said before it is deleted. On a faked machine."""

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

import nova

from .conftest import Machine, recorded
from .test_verbs import installable, runnable, runnable_installed  # noqa: F401 (fixtures)

FOLDER = "/home/me/nova"


def folder(machine: Machine) -> str:
    return str(machine.path(FOLDER))


@pytest.fixture
def kept(cfg: nova.Settings, machine: Machine) -> nova.Settings:
    """A cloud was made here, and nothing of it runs."""
    nova.make_folders(cfg)
    machine.put(nova.ENV / "made-from", "a" * 64 + "b" * 64)
    machine.put(nova.HOME / "nova/db/1.py", "a migration")
    machine.fake("rm", 'exec /bin/rm "$@"')
    for name in ("mount", "screen"):
        machine.fake(name)
    nova.keep(cfg)
    return cfg


@pytest.fixture
def up(runnable_installed: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:  # noqa: F811
    """A cloud is up; no call is on record."""
    machine = runnable_installed
    machine.fake("rm", 'exec /bin/rm "$@"')
    assert nova.main(["run_detached", folder(machine)]) == 0
    machine.path("/srv/session").unlink()  # it ends
    machine.calls.unlink()
    for name in ("servers_that_ran", "route_private"):
        monkeypatch.setattr(nova, name, lambda cfg: [])
    monkeypatch.setattr(nova, "wait_for_instances", lambda *_: None)
    return machine


def failure(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(nova.Failure) as caught:
        function(*arguments)
    return str(caught.value)


# ---- start ----


def test_start_starts_what_run_started_and_neither_empties_nor_fills_anything(up: Machine) -> None:
    before = {path: path.read_bytes() for path in (nova.STATE / "passwords.json", nova.STATE / "settings.json", nova.KEPT)}
    data = up.put(nova.STATE / "databases/mysql/ibdata1", "data")
    ended = [up.put(nova.HOME / name, "old") for name in ("state/rabbit/mnesia/nova", "state/root/run/libvirt/qemu/1.pid")]
    assert nova.main(["start", folder(up)]) == 0
    calls = up.transcript()
    waves = ("preload", "infrastructure", "control", "workers", "compute")
    windows = [window.name for wave in waves for window in nova.windows(nova.Settings(USE_KSM=False), wave)]
    assert re.findall(r"'screen -t (\S+) sh", calls) == windows
    assert calls.count("ovsdb-tool create") == 1 and "ovs/conf.db" in calls
    assert "nft -f" in calls and "ip address replace 10.6.0.1/27 dev br-ex" in calls
    assert not any(word in calls for word in ("cp --archive", "apt-get", "uv ", "mariadb", "rm --force"))
    assert data.read_text() == "data" and not any(path.exists() for path in ended)
    assert {path: path.read_bytes() for path in before} == before
    assert (nova.STATE / "run/up").exists()
    assert recorded().count("ip link delete group 28272") == 1, "what the run recorded is undone"


def test_what_was_installed_since_for_the_next_run_is_not_what_start_takes(up: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = nova.passwords(nova.STATE)["MYSQL_PASS"]
    monkeypatch.setenv("NET_MAN", "FlatManager")
    monkeypatch.setenv("MYSQL_PASS", "another-one")
    assert nova.main(["install", folder(up)]) == 0
    assert nova.passwords(nova.STATE)["MYSQL_PASS"] == "another-one"  # noqa: S105
    nova.start(nova.settings_of_run(str(nova.HOME)))  # this machine's mounts are no real ones
    assert nova.passwords(nova.STATE)["MYSQL_PASS"] == secret in (nova.CONF / "grants.sql").read_text()
    assert json.loads((nova.STATE / "settings.json").read_text())["NET_MAN"] == "VlanManager"


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_where_no_cloud_is_kept_there_is_nothing_to_do(
    cfg: nova.Settings, machine: Machine, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.fake("mount")
    machine.fake("screen")
    assert nova.main([verb, folder(machine)]) == 1
    assert f"no whole cloud in {cfg.DIR} to " in (said := capsys.readouterr().err) and "run_detached" in said


@pytest.mark.parametrize(
    ("fact", "why"),
    [
        (("HOSTNAME", "another"), "its instances are those of another, and this machine is called testhost now"),
        (("VERSIONS", "others"), "its databases have the tables of other versions than are installed now"),
        (("HOST_IP", "192.0.2.99"), "HOST_IP=192.0.2.99: not an address of this machine; it has 127.0.0.1, 192.0.2.10"),
        (("INTERFACE", "eth9"), "INTERFACE=eth9: this machine has lo, eth0"),
        (("INSTANCES_PATH", "/srv/disks"), "its disks are elsewhere, by the name of /home/me/nova: move it back"),
    ],
)
def test_start_refuses_another_machine_before_it_changes_anything(
    kept: nova.Settings, machine: Machine, fact: tuple[str, str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value = fact
    was = json.loads(nova.KEPT.read_text())
    nova.KEPT.write_text(json.dumps({**was, name: value, "FOLDER": FOLDER if name == "INSTANCES_PATH" else was["FOLDER"]}))
    assert nova.main(["start", folder(machine)]) in (1, 2)
    assert why in capsys.readouterr().err
    assert [line for line in machine.called() if not line.startswith(("mount ", "mkdir ", "screen -ls"))] == []


@pytest.mark.parametrize("changed", ["state/env/made-from", "nova/db/1.py"])
def test_start_refuses_another_tree(kept: nova.Settings, machine: Machine, changed: str) -> None:
    (nova.HOME / changed).write_text("another")
    assert "other versions than are installed now" in failure(nova.check_kept, kept)
    nova.keep(kept)
    assert nova.check_kept(kept) == kept
    (nova.ENV / "made-from").unlink()
    assert "install first" in failure(nova.check_kept, kept)


def test_start_does_not_miss_the_file_of_an_image_that_the_cloud_has(kept: nova.Settings) -> None:
    chosen = nova.replace(kept, IMAGE="/srv/gone.qcow2")
    assert nova.check_kept(chosen).IMAGE == "/srv/gone.qcow2"


def test_what_is_kept_is_roots_alone(kept: nova.Settings) -> None:
    assert nova.KEPT.stat().st_mode & 0o777 == 0o600
    assert nova.settings_of_run(str(kept.DIR)) == nova.replace(kept, **nova.passwords(nova.STATE))


def test_a_run_that_was_cut_off_leaves_nothing_to_start(up: Machine) -> None:
    up.fake("cp", "exit 1")
    assert nova.main(["run_detached", folder(up)]) == 1
    assert not nova.KEPT.exists()


def test_a_run_that_is_refused_leaves_what_was_there(up: Machine) -> None:
    up.memory = 1.0
    assert nova.main(["run_detached", folder(up)]) == 1
    assert nova.KEPT.exists()


def test_install_makes_no_databases_over_those_of_a_kept_cloud(
    up: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = up.put(nova.STATE / "databases/mysql/ibdata1", "data")
    monkeypatch.setenv("ADMIN_PASSWORD", "another-one")
    assert nova.main(["install", folder(up)]) == 1
    assert "Refusing to make new databases (the cloud in" in capsys.readouterr().err
    assert data.read_text() == "data"


def test_an_instance_that_does_not_run_is_rebooted_and_one_that_went_wrong_is_told(
    kept: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, listening = MagicMock(), iter([0, 0, 1])
    monkeypatch.setattr(nova, "cloud", MagicMock(return_value=admin))
    monkeypatch.setattr(nova, "consumers", lambda queue: next(listening))
    admin.compute.reboot_server.side_effect = lambda *_: machine.fake("virsh", "echo one; echo two")
    machine.fake("virsh", "echo one")
    servers: dict[str, Any] = {name: MagicMock(id=name, status="ACTIVE") for name in ("one", "two", "bad")}
    admin.compute.get_server.side_effect = servers.get
    nova.wait_for_instances(kept, [servers["one"], servers["two"]])
    assert [call.args for call in admin.compute.reboot_server.call_args_list] == [(servers["two"], "HARD")]
    assert next(listening, "all looked") == "all looked"
    servers["bad"].status, servers["bad"].fault = "ERROR", {"message": "no disk"}
    servers["bad"].name = "bad"
    monkeypatch.setattr(nova, "consumers", lambda queue: 1)
    assert failure(nova.wait_for_instances, kept, [servers["bad"]]) == "instance bad: no disk"


# ---- stop ----


def test_stop_ends_openstack_then_the_guests_then_what_both_stood_on(
    kept: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[object] = []
    (nova.STATE / "run/up").touch()
    monkeypatch.setattr(nova, "processes", lambda: [MagicMock()])
    monkeypatch.setattr(nova, "in_the_making", lambda cfg: ended.append((nova.STATE / "run/up").exists()))
    monkeypatch.setattr(nova, "end_windows", lambda those, seconds: ended.append({window.wave for window in those}))
    monkeypatch.setattr(nova, "end_processes", lambda those, seconds: None)
    machine.fake("virsh", "case $3 in list) [ -e /dev/null/x ] || echo a-guest;; shutdown) echo >/dev/null;; esac")
    looks = iter([{"a-guest"}, {"a-guest"}, set[str]()])
    monkeypatch.setattr(nova, "running_guests", lambda cfg: ended.append("look") or next(looks))
    nova.record("ip", "link", "delete", "br-ex")
    machine.put(nova.DOMAINS / "qemu/instance-1.xml")
    machine.fake("ip")
    nova.stop(kept)
    assert ended[:2] == [False, {*nova.OPENSTACK}]
    assert ended[2:5] == ["look", "look", "look"] and ended[-1] == {"preload", "infrastructure"}
    assert [line for line in machine.called() if not line.startswith(("screen", "rm"))] == [
        "virsh --connect qemu:///system shutdown a-guest", "ip link delete br-ex",
    ]  # fmt: skip
    assert nova.KEPT.exists() and (nova.DOMAINS / "qemu/instance-1.xml").exists()


def test_what_would_delete_a_kept_clouds_disks_stays_on_record_for_scrub(kept: nova.Settings, machine: Machine) -> None:
    lines = [
        "rmdir /srv/new",
        "rm --recursive /srv/disks",
        "losetup --detach /dev/loop7",
        "vgremove it",
        "vgchange -an it",
        "ip x",
    ]
    for name in ("rmdir", "losetup", "vgremove", "vgchange", "ip"):
        machine.fake(name)
    machine.fake("rm")
    for line in lines:
        nova.record(*line.split(), lasting=True)
    nova.remove_traces()
    assert machine.called() == ["ip x", "vgchange -an it", "losetup --detach /dev/loop7"]
    assert recorded() == [lines[0], lines[1], lines[3]]
    nova.KEPT.unlink()
    nova.remove_traces()
    assert machine.called()[3:] == ["vgremove it", "rm --recursive /srv/disks", "rmdir /srv/new"]
    assert not (nova.STATE / "record").exists()


def test_stopped_twice_is_stopped(kept: nova.Settings, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in "ab":
        assert nova.main(["stop", folder(machine)]) == 0
        assert "is stopped, and kept. To bring it back: sudo python3 nova.py start" in capsys.readouterr().err


def test_status_tells_that_it_is_stopped(kept: nova.Settings, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert nova.main(["status", folder(machine)]) == 1
    assert "it is stopped, and kept: sudo python3 nova.py start" in capsys.readouterr().err


def test_terminate_leaves_a_stopped_cloud_alone(
    kept: nova.Settings, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nova.main(["terminate", folder(machine)]) == 1
    assert f"Refusing to terminate (the cloud in {kept.DIR} is stopped" in capsys.readouterr().err
    assert nova.KEPT.exists()


def test_run_leaves_a_cloud_alone_that_another_call_stops(
    kept: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nova, "run_detached", lambda cfg, yes: None)
    machine.fake("screen", '[ "$1" != -ls ] || exit 1')  # and state/run/up is gone
    for name in ("terminate", "clean"):
        monkeypatch.setattr(nova, name, lambda cfg: pytest.fail("it is somebody else's to end"))
    monkeypatch.setattr(nova, "to_screen", lambda *_: None)
    nova.run(kept)
    assert nova.KEPT.exists()


# ---- What is said before it is deleted ----


@pytest.fixture
def filled(kept: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> nova.Settings:
    """A kept cloud with two instances, a volume, a snapshot and a backup, in databases whose server can be started."""
    chosen = nova.replace(kept, VOLUMES_SIZE="10")
    nova.keep(chosen)
    monkeypatch.setattr(nova, "started", lambda *_: nullcontext())
    monkeypatch.setattr(nova, "answers", lambda place: False)
    tables = "*snapshots*) echo then;; *backups*) echo safe;; *volumes*) echo data;; *) echo one; echo two;;"
    machine.fake("mariadb", f'case "$*" in {tables} esac')
    return chosen


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> list[str]:
    """Somebody is there who types this; the list is what was read."""
    read: list[str] = []
    there = MagicMock(isatty=lambda: True, readline=lambda: read.append(answer) or f"{answer}\n")
    monkeypatch.setattr(nova.sys, "stdin", there)
    return read


def test_without_a_terminal_it_is_said_and_done(
    filled: nova.Settings, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(nova.sys, "stdin", MagicMock(isatty=lambda: False))
    nova.tell_what_goes(filled, "")
    told = "2 instances (one, two) and 1 volumes (data) and 1 snapshots (then) and 1 backups (safe)"
    wanted = f"This deletes the cloud in {filled.DIR} with its users, images and networks: {told}.\n"
    assert capsys.readouterr().err == wanted


@pytest.mark.parametrize(("answer", "goes"), [("yes", True), ("no", False), ("", False), ("Yes!", False)])
def test_at_a_terminal_it_is_asked(filled: nova.Settings, monkeypatch: pytest.MonkeyPatch, answer: str, goes: bool) -> None:
    read = at_a_terminal(monkeypatch, answer)
    if goes:
        nova.tell_what_goes(filled, "")
    else:
        assert failure(nova.tell_what_goes, filled, "") == "nothing was changed"
    assert read == [answer]


def test_who_said_yes_is_not_asked(filled: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    read = at_a_terminal(monkeypatch, "no")
    nova.tell_what_goes(filled, "--yes")
    assert read == []


@pytest.mark.parametrize("verb", ["run_detached", "scrub"])
def test_a_no_changes_nothing(filled: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    at_a_terminal(monkeypatch, "no")
    before = nova.KEPT.read_bytes()
    assert nova.main([verb, folder(machine)]) == 1
    looks = ("mount ", "mkdir ", "screen -ls", "mariadb ", "dpkg-query ")
    changing = [line for line in machine.called() if not line.startswith(looks)]
    assert (nova.KEPT.read_bytes(), changing) == (before, [])


def test_scrub_ends_the_cloud_for_good(filled: nova.Settings, machine: Machine) -> None:
    assert nova.main(["scrub", "--yes", folder(machine)]) == 0
    assert not nova.KEPT.exists()


@pytest.mark.parametrize("words", [["install", "--yes"], ["stop", "--yes"], ["run", "--json"]])
def test_a_word_that_is_another_verbs_is_refused(kept: nova.Settings, words: list[str]) -> None:
    assert nova.main(words) == 2


def test_nothing_is_said_where_there_is_nothing(kept: nova.Settings, capsys: pytest.CaptureFixture[str]) -> None:
    nova.tell_what_goes(kept, "")
    assert capsys.readouterr().err == f"This deletes the cloud in {kept.DIR} with its users, images and networks.\n"
    nova.KEPT.unlink()
    nova.tell_what_goes(kept, "")
    assert capsys.readouterr().err == ""


def test_databases_that_do_not_tell_stop_nothing(filled: nova.Settings, machine: Machine) -> None:
    machine.fake("mariadb", "exit 1")
    machine.put(nova.DOMAINS / "qemu/instance-00000001.xml")
    assert nova.what_it_has(filled) == {"instances": ["instance-00000001"]}


def test_sqlite_tells_the_names_too(filled: nova.Settings) -> None:
    cfg, place = nova.replace(filled, USE_MYSQL=False), Path(nova.STATE / "databases/sqlite")
    place.mkdir(parents=True)
    new, bad = "('new', 0, 'spawning', 'building')", "('bad', 0, 'x', 'error')"
    for name, table, rows in (
        ("nova_cell1", "instances (display_name, deleted, task_state, vm_state)",
         f"('one', 0, NULL, 'active'), ('gone', 7, NULL, 'deleted'), {new}, {bad}"),
        ("cinder", "volumes (display_name, deleted, status)",
         "('data', 0, 'in-use'), ('gone', 1, 'deleted'), ('new', 0, 'creating'), ('bad', 0, 'error_deleting')"),
        ("cinder", "snapshots (display_name, deleted, status)", "('then', 0, 'available'), ('late', 0, 'deleting')"),
        ("cinder", "backups (display_name, deleted, status)", "('safe', 0, 'available'), ('gone', 1, 'deleted')"),
    ):  # fmt: skip
        with closing(sqlite3.connect(place / name)) as file, file:
            file.execute(f"CREATE TABLE {table}")
            file.execute(f"INSERT INTO {table} VALUES {rows}")  # noqa: S608
    of_cinder = {"volumes": ["data", "new", "bad"], "snapshots": ["then", "late"], "backups": ["safe"]}
    assert nova.what_it_has(cfg) == {"instances": ["one", "new", "bad"], **of_cinder}
    assert nova.in_the_making(cfg) == ["new", "new", "late"]
