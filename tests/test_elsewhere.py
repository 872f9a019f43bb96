# SPDX-License-Identifier: Apache-2.0
"""INSTANCES_PATH and LOCK_PATH: what is refused, and that other people's files beside ours stay."""

import shlex

import pytest

import nova

from .conftest import Machine, recorded


def chosen(cfg: nova.Settings, **paths: str) -> nova.Settings:
    return nova.settings_from(paths, str(cfg.DIR))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("disks", "an absolute path of letters, digits, . _ - and /"),
        ("/srv/my disks", "an absolute path of letters, digits, . _ - and /"),
        ("/srv/file", "/srv/file is not a folder"),
        ("/srv/file/below", "/srv/file is not a folder"),
        ("{DIR}/disks", "it and {DIR} must lie beside each other; leave it empty for a folder in {DIR}"),
        ("{DIR}", "it and {DIR} must lie beside each other; leave it empty for a folder in {DIR}"),
        ("/run/nova.py", "it and /run/nova.py must lie beside each other; leave it empty for a folder in {DIR}"),
    ],
)
@pytest.mark.parametrize("name", [name for name, _ in nova.ELSEWHERE])
def test_a_path_that_cannot_work_is_refused(cfg: nova.Settings, machine: Machine, name: str, path: str, why: str) -> None:
    machine.put("/srv/file")
    nova.HOME.unlink()
    path, why = path.format(DIR=cfg.DIR), why.format(DIR=cfg.DIR)
    with pytest.raises(nova.Failure) as caught:
        chosen(cfg, **{name: path})
    assert caught.value.code == 2
    assert str(caught.value).replace(str(machine.root), "") == f"{name}={path}: {why}".replace(str(machine.root), "")


def test_a_full_disk_is_told(cfg: nova.Settings, machine: Machine) -> None:
    machine.disk = 0.5
    with pytest.raises(nova.Failure, match="INSTANCES_PATH=/srv/disks: less than 1 GiB is free there"):
        chosen(cfg, INSTANCES_PATH="/srv/disks")
    assert chosen(cfg, LOCK_PATH="/srv/locks").LOCK_PATH == "/srv/locks", "locks need no room"


@pytest.fixture
def used(cfg: nova.Settings, machine: Machine) -> nova.Settings:
    """Both elsewhere: one folder was there, and holds a file of somebody's; the other and the one above it are made."""
    machine.fake("mount", machine.mounting())
    machine.put("/srv/disks/letter")
    cfg = chosen(cfg, INSTANCES_PATH="/srv/disks", LOCK_PATH="/srv/new/locks")
    nova.use_elsewhere(cfg)
    nova.make_folders(cfg)
    return cfg


def test_a_folder_of_our_own_below_is_mounted_where_the_cloud_looks(used: nova.Settings, machine: Machine) -> None:
    instances, locks = (nova.HOME / "instances").resolve(), (nova.STATE / "locks").resolve()
    assert instances.parent == machine.path("/srv/disks") and locks.parent == machine.path("/srv/new/locks")
    assert machine.owners[f"{nova.STATE}/locks".removeprefix(str(machine.root))] == nova.USER
    machine.put(instances / "an-instance/disk")
    assert (nova.HOME / "instances/an-instance/disk").exists()


def test_what_is_made_is_on_record_before(used: nova.Settings, machine: Machine) -> None:
    lines = [shlex.split(line.replace(str(machine.root), "")) for line in recorded()]
    assert [line[0] for line in lines] == ["rm", "rmdir", "rmdir", "rm"]
    assert [line[-1] for line in lines[1:3]] == ["/srv/new", "/srv/new/locks"]


def test_scrub_removes_ours_and_nothing_else(used: nova.Settings, machine: Machine) -> None:
    machine.put((nova.HOME / "instances").resolve() / "an-instance/disk")
    for name in ("rm", "rmdir"):
        machine.fake(name, f'exec /bin/{name} "$@"')
    nova.remove_traces()
    assert [path.name for path in machine.path("/srv/disks").iterdir()] == ["letter"]
    assert not machine.path("/srv/new").exists() and machine.path("/srv").exists()


# ---- Two clouds ----


def test_scrub_is_refused_while_another_cloud_is_up(used: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "other_cloud", lambda: "the cloud in /home/you/nova (session theirs)")
    (nova.STATE / "record").write_text("touch anything\n")
    with pytest.raises(nova.Failure, match=r"Refusing to scrub \(the cloud in /home/you/nova \(session theirs\) is up"):
        nova.scrub(used)
    assert (nova.STATE / "record").read_text() == "touch anything\n"


def test_what_was_left_is_not_undone_while_another_cloud_is_up(used: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "other_cloud", lambda: "the cloud in /home/you/nova (session theirs)")
    monkeypatch.setattr(nova, "check_ports", lambda cfg: nova.session and (_ for _ in ()).throw(nova.Failure("port 5000")))
    monkeypatch.setattr(nova, "session", lambda cfg: 0)
    with pytest.raises(nova.Failure, match="port 5000"):
        nova.install(used)
    assert (nova.STATE / "record").exists()
