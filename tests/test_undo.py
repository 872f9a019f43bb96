# SPDX-License-Identifier: Apache-2.0
"""What is recorded, and undone: the record cut at any byte, the look at the machine, uninstall."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import nova

from .conftest import Machine, recorded

Fake = Callable[..., None]
LINES = [["ip", "link", "delete", "br-ex"], ["rm", "--recursive", "/srv/a folder#1"], ["sysctl", "-qw", "net.ipv4.ip_forward=0"]]


# ---- The record ----


@pytest.fixture
def record(cfg: nova.Settings) -> Path:
    """A record with LINES in it, the second of which lasts."""
    for line in LINES:
        nova.record(*line, lasting=line[0] == "rm")
    return nova.STATE / "record"


def test_a_record_cut_at_any_byte_has_whole_lines_only(record: Path) -> None:
    whole, seen = record.read_bytes(), set()
    wanted = recorded()
    assert len(wanted) == 3
    for length in range(len(whole) + 1):
        record.write_bytes(whole[:length])
        left = recorded()
        assert left == wanted[: len(left)]
        seen.add(len(left))
    assert seen == {0, 1, 2, 3}


def test_what_is_recorded_after_a_cut_counts(record: Path) -> None:
    whole = record.read_bytes()
    for length in range(len(whole)):
        record.write_bytes(whole[:length])
        before = recorded()
        nova.record("nft", "delete", "table")
        assert recorded() == [*before, "nft delete table"]


def test_bytes_that_a_crash_left_empty_are_no_commands(record: Path) -> None:
    whole = record.read_bytes()
    record.write_bytes(whole[:20] + bytes(len(whole) - 20) + b"\xff")
    assert recorded() == []


def test_words_come_back_as_they_were(record: Path, machine: Machine) -> None:
    for name in ("ip", "rm", "sysctl"):
        machine.fake(name)
    nova.undo_recorded()
    assert machine.called() == ["sysctl -qw net.ipv4.ip_forward=0", "rm --recursive '/srv/a folder#1'", "ip link delete br-ex"]


def test_what_is_undone_is_undone_where_it_was_done(cfg: nova.Settings, machine: Machine) -> None:
    nova.record("ip", "link", "delete", "br-ex")
    nova.record("rmdir", "/srv/new", outside=True)
    lines = [line.rpartition("  # ")[0] for line in nova.recorded()]
    assert lines == [f"chroot {nova.ROOTFS} ip link delete br-ex", "rmdir /srv/new"]
    machine.fake("ip")
    machine.fake("rmdir")
    nova.undo_recorded()
    assert machine.called("enter ") == ["rmdir /srv/new", "enter ip link delete br-ex"]
    assert nova.recorded() == []


@pytest.mark.parametrize("outside", [True, False])
def test_disks_of_a_kept_cloud_are_deleted_by_scrub_alone(cfg: nova.Settings, machine: Machine, outside: bool) -> None:
    machine.fake("rm")
    nova.record("rm", "--recursive", "/srv/disks", lasting=True, outside=outside)
    machine.put(nova.KEPT, "{}")
    nova.undo_recorded()
    assert machine.called() == [] and recorded() == ["rm --recursive /srv/disks"]
    nova.KEPT.unlink()
    nova.undo_recorded()
    assert machine.called() == ["rm --recursive /srv/disks"] and recorded() == []


@pytest.mark.parametrize(("kernel", "first"), [("b", "100"), ("a", "200")], ids=["the machine's", "a container's"])
def test_after_a_reboot_what_went_with_it_is_not_undone(cfg: nova.Settings, machine: Machine, kernel: str, first: str) -> None:
    def booted(kernel: str, first: str) -> None:
        machine.put("/proc/sys/kernel/random/boot_id", kernel)
        machine.put("/proc/1/stat", f"1 (in it) S{' 0' * 18} {first} 9 9\n")

    booted("a", "100")
    for line in LINES:
        nova.record(*line, lasting=line[0] == "rm")
    assert len(recorded()) == 3
    booted(kernel, first)
    assert recorded() == ["rm --recursive '/srv/a folder#1'"]


# ---- The inventory ----


def test_the_baseline_is_of_the_time_before_the_first_run(cfg: nova.Settings, machine: Machine) -> None:
    machine.fake("bash", "echo route b; echo route a")
    nova.save_baseline()
    machine.fake("bash", "echo route a; echo listens c")
    nova.save_baseline()
    assert nova.BASELINE.read_text() == "route a\nroute b"
    assert nova.differences() == ["+ listens c", "- route b"]


def test_without_a_run_there_is_nothing_to_compare(cfg: nova.Settings) -> None:
    assert nova.differences() == []


# ---- uninstall ----


@pytest.fixture
def installed(cfg: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> nova.Settings:
    """A cloud's folder, which was made with the one it is in, after a run; nothing runs."""
    for name in ("umount", "screen"):
        machine.fake(name, "exit 1")
    machine.put(nova.TOOL / "uv")
    machine.put(nova.AROUND, json.dumps({"made": [str(machine.path("/home/me"))]}))
    machine.put(nova.BASELINE, "route a")
    for name in ("instances/x", "state/cache/big", "state/root/usr/bin/screen", "state/root.made-from", "nova/api.py", "novarc"):
        machine.put(nova.HOME / name)
    tree = {"whole": True, "top": ["nova"], "files": {"nova/api.py": nova.digest(nova.HOME / "nova/api.py")}}
    machine.put(nova.TREE, json.dumps(tree))
    monkeypatch.setattr(nova, "HERE", nova.TOOL.parent)
    monkeypatch.setattr(nova, "answers", lambda place: False)
    monkeypatch.setattr(nova, "inventory", lambda: "route a")
    monkeypatch.setattr(nova, "leave_mounts", lambda cfg: nova.HOME.unlink() or nova.HOME.mkdir())
    return cfg


def test_uninstall_leaves_nothing(installed: nova.Settings, machine: Machine) -> None:
    nova.uninstall(installed)
    assert not installed.DIR.exists() and not installed.DIR.parent.exists()
    assert not nova.HOME.exists() and not nova.LOCK.exists() and not nova.TOOL.exists()


def test_uninstall_before_the_first_run(installed: nova.Settings) -> None:
    nova.BASELINE.unlink()
    nova.uninstall(installed)
    assert not installed.DIR.exists()


def test_what_is_left_behind_is_told(installed: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "wait_for", lambda what, ready, seconds: ready())
    monkeypatch.setattr(nova, "inventory", lambda: "route a\nroute of a cloud")
    with pytest.raises(nova.Failure, match="the machine is not as it was before the first run") as caught:
        nova.uninstall(installed)
    assert caught.value.tail == ("+ route of a cloud",)
    assert not installed.DIR.exists()


def test_nothing_is_deleted_where_a_mount_could_not_be_left(
    cfg: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fake("umount", "exit 1")
    machine.put("/proc/self/mountinfo", f"1 2 0:5 / {cfg.DIR}/state/root/dev rw - devtmpfs dev rw\n")
    with pytest.raises(nova.Failure, match="state/root/dev is mounted, and would be deleted with"):
        nova.leave_mounts(cfg)


def test_downloads_can_be_kept(installed: nova.Settings) -> None:
    nova.uninstall(installed, "--keep-cache")
    assert {path.name for path in (installed.DIR / "state").iterdir()} == {"cache", "root", "root.made-from"}
    assert (installed.DIR / "state/cache/big").exists() and [path.name for path in installed.DIR.iterdir()] == ["state"]
    assert (nova.TOOL / "uv").exists()


def test_a_tree_with_changes_stays(installed: nova.Settings, capsys: pytest.CaptureFixture[str]) -> None:
    (nova.HOME / "nova/api.py").write_text("a day's work")
    nova.uninstall(installed)
    assert [path.name for path in installed.DIR.rglob("*")] == ["nova", "api.py"]
    assert f"Your 1 changes stay in {installed.DIR}: nova/api.py" in capsys.readouterr().err


def test_uninstall_is_refused_while_another_cloud_is_up(installed: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "other_cloud", lambda: "the cloud in /home/you/nova (session theirs)")
    with pytest.raises(nova.Failure, match="Refusing to uninstall"):
        nova.uninstall(installed)
    assert installed.DIR.exists()


def test_nothing_to_uninstall(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "HERE", tmp_path)
    assert nova.main(["uninstall", str(tmp_path / "nowhere")]) == 0
    assert not (tmp_path / "nowhere").exists()


def test_a_cloud_of_an_older_nova_py_is_named(cfg: nova.Settings, machine: Machine) -> None:
    machine.put(nova.OLDER / "clouds.json", json.dumps({"/home/me/gone": "", "/home/you/nova": ""}))
    nova.check_older_clouds()  # folders that were deleted by hand are in nobody's way
    machine.put("/home/you/nova/novarc")
    with pytest.raises(nova.Failure, match=r"an older nova.py \(0.1\) .* for the cloud in /home/you/nova$") as caught:
        nova.check_machine(cfg)
    assert caught.value.hint.endswith("uninstall /home/you/nova")
