# SPDX-License-Identifier: Apache-2.0
"""What is recorded, and undone: the record cut at any byte, the look at the machine, uninstall."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
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


# ---- The look ----


def test_every_look_is_of_this_machine_and_kept_as_json(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.fake("dpkg-query", 'printf "%s\\n" "installed b" "config-files a" "not-installed c" "config-files b"')
    machine.put("/etc/a", "content")
    machine.path("/etc/link").symlink_to("a")
    machine.put("/etc/passwd-", "renewed by useradd")
    machine.put("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
    machine.put("/sys/class/net/br9/flags", "0x1003\n")
    machine.put(
        f"/proc/{os.getppid()}/mountinfo", "1 2 3:4 / /srv rw - ext4 /dev/sda rw\n1 2 3:4 / /run/user/0 rw - tmpfs tmpfs rw\n"
    )
    monkeypatch.setattr(nova.psutil, "net_if_addrs", dict)
    seen = json.loads(json.dumps(nova.look_at_machine()))
    assert seen["packages"] == {"a": "config-files", "b": "installed"}
    assert {Path(name).name: state for name, state in seen["files"].items() if "system" not in name} == {
        "a": "100644 0:0 ed7002b439e9ac84", "link": "a", "passwd": seen["files"][str(machine.path("/etc/passwd"))],
    }  # fmt: skip
    assert seen["users"] == {"root": "root:x:0:0:root:/root:/bin/bash"}
    assert list(seen["interfaces"].values()) == ["0x1003"]
    assert seen["mounts"] == {"/srv": "/dev/sda"}
    assert seen["nftables"] is None


def test_rules_are_compared_without_counters_and_dates(fake: Fake) -> None:
    fake("iptables-legacy-save", 'printf "%s\\n" "# Generated on $RANDOM" "*nat" ":INPUT ACCEPT [$RANDOM:$RANDOM]" COMMIT')
    assert nova.LOOKS["iptables"]() == nova.LOOKS["iptables"]() == {"": "1", "*nat": "1", ":INPUT ACCEPT": "1", "COMMIT": "1"}


def test_what_differs_is_told_and_what_could_not_be_seen_is_not() -> None:
    before: dict[str, Any] = {"packages": {"a": "installed", "b": "installed"}, "nftables": None, "ports": {}}
    now: dict[str, Any] = {"packages": {"a": "installed", "c": "installed"}, "nftables": {"rule": "1"}, "ports": {"0:22": "sshd"}}
    assert nova.differences(before, now) == [
        {"what": "packages", "which": "b", "before": "installed", "now": None},
        {"what": "packages", "which": "c", "before": None, "now": "installed"},
        {"what": "ports", "which": "0:22", "before": None, "now": "sshd"},
    ]
    assert nova.differences(before, before) == []


# ---- Packages that others have come to need ----

# what dpkg 1.21 says
BLOCKED = """dpkg: dependency problems prevent removal of libone:amd64:
 theirs:amd64 depends on libone.

dpkg: error processing package libone:amd64 (--purge):
 dependency problems - not removing
dpkg: dependency problems prevent removal of two:
 other depends on virtual; however:
  Package two which provides virtual is to be removed.

dpkg: error processing package two (--purge):"""


def test_packages_that_others_need_stay_with_what_these_need(fake: Fake) -> None:
    fake("dpkg-query", "exit 1")
    blocked = f'case "$*" in *libone*) cat <<EOF >&2\n{BLOCKED}\nEOF\nexit 1;; *base*) cat <<EOF >&2\n'
    blocked += "dpkg: dependency problems prevent removal of base:\n libone depends on base.\nEOF\nexit 1;; esac"
    fake("dpkg", blocked.replace("cat ", "/bin/cat "))
    assert nova.needed({"libone", "two", "base", "free"}) == {
        "libone": "theirs:amd64", "two": "other", "base": "libone",
    }  # fmt: skip


def test_a_package_that_a_process_runs_from_stays(fake: Fake) -> None:
    mine = psutil.Process().exe()
    fake("dpkg-query", f'echo "screen:amd64: {mine}"; echo "diversion by x from: {mine}"')
    fake("dpkg")
    stay = nova.needed({"screen", "free"})
    assert list(stay) == ["screen"] and "(process " in stay["screen"]


# ---- uninstall ----


@pytest.fixture
def installed(cfg: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> nova.Settings:
    """A cloud's folder, two packages that came for it, a user; nothing runs."""
    machine.put("/srv/packages", "installed mine\n")
    machine.fake("dpkg-query", f'[ "$1" != --show ] || /bin/cat {machine.path("/srv/packages")}')
    machine.fake("screen", "exit 1")
    machine.fake("umount")
    machine.fake("dpkg", f'case "$1" in --purge) echo installed mine >{machine.path("/srv/packages")};; esac')
    machine.fake("userdel", f": >{machine.path('/etc/passwd')}")
    machine.fake("groupdel")
    machine.put("/etc/passwd", "")
    machine.put("/etc/mine.conf", "mine")
    machine.put(nova.TOOL / "uv")
    machine.path("/var/cache").mkdir()
    for name in ("addresses", "parameters", "ports", "interfaces", "routes", "processes", "namespaces", "mounts", "disks"):
        monkeypatch.setitem(nova.LOOKS, name, dict)
    nova.keep_look(cfg, nova.look_at_machine(), [machine.path("/home/me")])
    nova.write_file(nova.INSTALLING, json.dumps(nova.look_at_machine(nova.OF_PACKAGES)))
    nova.write_file(nova.COMING, "VERSION 2\n\ncame - < 1 /came_1.deb\nlibcame - < 1 /libcame_1.deb\nmine 1 < 2 /mine_2.deb\n")
    machine.put("/srv/packages", "installed mine\ninstalled came\ninstalled libcame\n")
    machine.put("/etc/came.d/conf", "came")
    machine.put("/etc/passwd", "came:x:99:99::/:/bin/false\n")
    nova.note_brought()
    nova.INSTALLING.unlink()
    nova.make_machine_folder(machine.path("/var/cache/came/deep"))
    for name in ("instances/x", "state/cache/big", "nova/api.py", "novarc"):
        machine.put(nova.HOME / name)
    machine.put(
        nova.TREE, json.dumps({"whole": True, "top": ["nova"], "files": {"nova/api.py": nova.digest(nova.HOME / "nova/api.py")}})
    )
    machine.calls.unlink()
    monkeypatch.setattr(nova, "HERE", nova.TOOL.parent)
    monkeypatch.setattr(nova, "answers", lambda place: False)
    monkeypatch.setattr(nova, "dpkg_is_free", lambda: True)
    monkeypatch.setattr(nova, "leave_mounts", nova.HOME.unlink)
    return cfg


def test_uninstall_leaves_nothing(installed: nova.Settings, machine: Machine) -> None:
    nova.uninstall(installed)
    assert "SUDO_FORCE_REMOVE=yes dpkg --purge --force-remove-reinstreq came libcame" in [
        line.split(" ", 2)[2] for line in machine.called() if "dpkg " in line
    ]
    assert not installed.DIR.exists() and not installed.DIR.parent.exists()
    assert not nova.MACHINE.exists() and not nova.TOOL.exists()
    assert not machine.path("/etc/came.d").exists() and machine.path("/etc/mine.conf").exists()
    assert list(machine.path("/var/cache").iterdir()) == []
    assert any(line.endswith("userdel came") for line in machine.called())


def test_uninstall_before_any_package_came(installed: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    nova.BROUGHT.unlink()
    machine.put("/srv/packages", "installed mine\n")
    machine.put("/etc/passwd", "")
    machine.path("/etc/came.d/conf").unlink()
    machine.path("/etc/came.d").rmdir()
    nova.uninstall(installed)
    assert not nova.MACHINE.exists()


@pytest.mark.parametrize("left", ["/etc/left.conf", "/var/lib/left"])
def test_what_is_left_behind_is_told_and_the_next_call_goes_on(
    installed: nova.Settings, machine: Machine, capsys: pytest.CaptureFixture[str], left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nova, "wait_for", lambda what, ready, seconds: ready())
    machine.put(left)
    with pytest.raises(nova.Failure, match="1 things are not as they were before the first command"):
        nova.uninstall(installed)
    assert left in capsys.readouterr().out
    assert nova.MACHINE.exists() and nova.TOOL.exists()
    machine.path(left).unlink()
    monkeypatch.setattr(nova, "leave_mounts", lambda: None)
    nova.uninstall(installed)
    assert not nova.MACHINE.exists()


def test_downloads_can_be_kept(installed: nova.Settings) -> None:
    nova.uninstall(installed, "--keep-cache")
    assert [path.name for path in installed.DIR.rglob("*")] == ["state", "cache", "big"]
    assert (nova.TOOL / "uv").exists() and not nova.MACHINE.exists()


def test_a_tree_with_changes_stays(installed: nova.Settings, capsys: pytest.CaptureFixture[str]) -> None:
    (nova.HOME / "nova/api.py").write_text("a day's work")
    nova.uninstall(installed)
    assert [path.name for path in installed.DIR.rglob("*")] == ["nova", "api.py"]
    assert f"Your 1 changes stay in {installed.DIR}: nova/api.py" in capsys.readouterr().err


def test_another_clouds_packages_stay(installed: nova.Settings, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.put("/home/you/nova/state/tree.json")
    nova.write_file(nova.CLOUDS, json.dumps({str(installed.DIR): "", str(machine.path("/home/you/nova")): ""}))
    nova.uninstall(installed)
    assert not installed.DIR.exists()
    assert [line for line in machine.called() if "dpkg --" in line or "userdel" in line] == []
    assert list(nova.kept(nova.CLOUDS)) == [str(machine.path("/home/you/nova"))]
    assert nova.TOOL.exists()


def test_uninstall_is_refused_while_another_cloud_is_up(installed: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "other_cloud", lambda: "the cloud in /home/you/nova (session theirs)")
    with pytest.raises(nova.Failure, match="Refusing to uninstall"):
        nova.uninstall(installed)
    assert installed.DIR.exists()


def test_nothing_to_uninstall(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "HERE", tmp_path)
    assert nova.main(["uninstall", str(tmp_path / "nowhere")]) == 0
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_has_no_cloud_is_told_where_there_are_others(machine: Machine, tmp_path: Path) -> None:
    machine.put("/home/you/nova/state/tree.json")
    machine.put(nova.CLOUDS, json.dumps({str(machine.path("/home/you/nova")): ""}))
    assert nova.main(["uninstall", str(tmp_path / "nowhere")]) == 1
    assert nova.MACHINE.exists()


def test_what_others_made_while_packages_came_is_theirs(installed: nova.Settings, machine: Machine) -> None:
    machine.put("/etc/passwd", "")
    nova.write_file(nova.INSTALLING, json.dumps(nova.look_at_machine(nova.OF_PACKAGES)))
    machine.put("/etc/passwd", "them:x:1000:1000::/home/them:/bin/bash\nserver:x:900:900::/:/bin/false\n")
    log = machine.put("/var/log/dpkg.log")
    machine.put("/etc/by-a-package")
    os.utime(machine.put("/etc/theirs"))
    os.utime(log, (1, machine.path("/etc/theirs").lstat().st_ctime - 2))
    nova.note_brought()
    assert set(nova.kept(nova.BROUGHT)["users"]) == {"came", "server"}
    assert not [name for name in nova.kept(nova.BROUGHT)["files"] if name.endswith(("theirs", "by-a-package"))]
    os.utime(log)
    nova.note_brought()
    assert [Path(name).name for name in nova.kept(nova.BROUGHT)["files"]][:1] == ["by-a-package"]
