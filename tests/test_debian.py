# SPDX-License-Identifier: Apache-2.0
"""IMAGE=debian: what the word means to nova.py, and the parts of conf/debian/bootstrap.py that need no network."""

import gzip
import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import nova

from .conftest import Machine

SPEC = importlib.util.spec_from_file_location("bootstrap", nova.HERE / "conf/debian/bootstrap.py")
assert SPEC and SPEC.loader
bootstrap = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bootstrap)

SAID = """\
Debian|http://mirror/debian/|bookworm|main|/usr/share/keyrings/debian-archive-keyring.gpg
Debian|http://mirror/debian/|bookworm|main|/usr/share/keyrings/debian-archive-keyring.gpg
Another|http://elsewhere/|stable|main|
Debian|http://mirror/debian-security/|bookworm-security|main|
Debian|http://mirror/debian/|bookworm-updates|main|ABCDEF0123
"""
LIST = """\
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror/debian/ bookworm main
deb http://mirror/debian-security/ bookworm-security main
deb http://mirror/debian/ bookworm-updates main
"""


@pytest.fixture
def debian(cfg: nova.Settings) -> nova.Settings:
    return nova.settings_from({"IMAGE": "debian"}, str(cfg.DIR))


# ---- The word ----


def test_the_word_wins_over_a_file_of_that_name(debian: nova.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "debian").write_text("no disk")
    monkeypatch.chdir(tmp_path)
    assert nova.settings_from({"IMAGE": "debian"}, str(debian.DIR)).IMAGE == "debian"
    with pytest.raises(nova.Failure, match="debian: neither qcow2 nor a raw disk"):
        nova.settings_from({"IMAGE": "./debian"}, str(debian.DIR))


def test_it_is_no_container(cfg: nova.Settings, machine: Machine) -> None:
    with pytest.raises(nova.Failure, match="LIBVIRT_TYPE=lxc: no IMAGE=debian"):
        nova.settings_from({"IMAGE": "debian", "LIBVIRT_TYPE": "lxc"}, str(cfg.DIR))


def test_without_the_word_nothing_of_it_is_installed_built_or_uploaded(cfg: nova.Settings, debian: nova.Settings) -> None:
    assert nova.services(debian).keys() - nova.services(cfg).keys() == {"debian"}
    assert list(nova.SERVICES["debian"].packages) == ["mmdebstrap"]
    assert list(nova.images(cfg)) == ["ami-tty"]
    assert list(nova.images(debian)) == ["ami-tty", "debian"]


def test_the_copy_of_a_new_cloud_is_of_this_very_image(debian: nova.Settings, machine: Machine) -> None:
    keys = {nova.key_of_new(debian)}
    for content in ("one", "another"):
        machine.put(nova.HOME / "images/debian/root.qcow2", content)
        keys.add(nova.key_of_new(debian))
    assert len(keys) == 3


def test_it_is_uploaded_with_its_kernel_and_is_no_download(
    debian: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = MagicMock()
    admin.image.create_image.side_effect = lambda name, **_: MagicMock(id=f"id of {name}")
    monkeypatch.setattr(nova, "cloud", MagicMock(return_value=admin))
    for image in nova.IMAGES.values():
        for part in image["part"]:
            machine.put(nova.HOME / image["folder"] / part["file"])
    nova.fetch_image(debian)
    nova.upload_image(debian)
    made = {call.kwargs["name"]: call.kwargs for call in admin.image.create_image.call_args_list}
    assert len(made) == admin.image.create_image.call_count == 6
    its = made["debian"]
    assert (its["disk_format"], its["container_format"]) == ("qcow2", "bare")
    assert (its["kernel_id"], its["ramdisk_id"]) == ("id of debian-kernel", "id of debian-ramdisk")
    assert (its["min_disk"], its["min_ram"]) == (1, 256)
    assert [made[name]["container_format"] for name in ("debian-kernel", "debian-ramdisk", "ami-tty")] == ["aki", "ari", "ami"]


# ---- What builds it ----


def test_debians_sources_are_taken_as_apt_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "ask", lambda *_: SAID)
    assert bootstrap.sources_list(bootstrap.sources()) == LIST


def test_a_machine_without_debians_sources_is_told_so() -> None:
    with pytest.raises(SystemExit, match="no source of Debian's packages"):
        bootstrap.sources_list([bootstrap.Source("Ubuntu", "http://mirror/ubuntu/", "noble", "main", "")])


@pytest.mark.parametrize("before", [b"", b"070701...modules...TRAILER!!!" + bytes(400)], ids=["Debian 12", "Debian 13"])
def test_the_initramfs_is_not_compressed(before: bytes) -> None:
    assert bootstrap.unpacked(before + gzip.compress(b"070701...TRAILER!!!\0")) == before + b"070701...TRAILER!!!\0"


def test_the_machines_ways_do_not_stay_in_the_image(tmp_path: Path, real: Callable[[str], str]) -> None:
    """The configuration of its apt, its host keys, its number: what the hooks do, done to a folder."""
    hooks, shell = bootstrap.hooks(tmp_path), real("sh")
    tree = tmp_path / "tree"
    for name in ("etc/apt/apt.conf.d", "etc/ssh", "var"):
        (tree / name).mkdir(parents=True)
    for name in ("etc/ssh/ssh_host_ed25519_key", "etc/machine-id", "etc/resolv.conf"):
        (tree / name).write_text("of the builder\n")
    (tmp_path / "ways").write_text('Acquire::http::Proxy "http://proxy:1";\n')
    for when in ("setup", "essential", "customize"):
        for line in hooks[when]:
            if not line.startswith("chroot "):
                subprocess.run([shell, "-ec", line, "sh", str(tree)], check=True, env={"PATH": "/usr/bin:/bin"})
        ways = [path.name for path in (tree / "etc/apt/apt.conf.d").iterdir()]
        assert ways == ([] if when == "customize" else ["99ways"])
    assert [*(tree / "etc/ssh").iterdir()] == []
    assert (tree / "etc/machine-id").read_text() == ""
    assert os.readlink(tree / "etc/resolv.conf") == "../run/systemd/resolve/stub-resolv.conf"
    assert (tree / "etc/fstab").read_text().startswith("LABEL=debian / ext4 ")
    assert os.access(tree / "etc/initramfs-tools/hooks/image", os.X_OK)
