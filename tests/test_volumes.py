# SPDX-License-Identifier: Apache-2.0
"""Volumes on the faked machine: refused or made, as files or by LVM, and deleted."""

import re
from unittest.mock import MagicMock

import pytest

import nova

from .conftest import Machine, recorded

TABLES = ("FOLDERS", "PRIVATE_FOLDERS", "CONFIG_FILES", "SERVERS", "CONTROL", "WORKERS", "DATABASES", "ENDPOINTS", "GROUPS")


@pytest.fixture
def volumes(cfg: nova.Settings, machine: Machine) -> nova.Settings:
    """10 GiB of volumes, on a machine that can have them."""
    machine.put("/dev/loop-control")
    return nova.replace(cfg, VOLUMES_SIZE="10")


@pytest.fixture
def can_lvm(machine: Machine) -> None:
    """A kernel with device-mapper and an iSCSI initiator."""
    machine.put("/dev/mapper/control")
    machine.put("/sys/module/iscsi_tcp/version")


def added(cfg: nova.Settings, to: nova.Settings) -> set[str]:
    """The services that the one has and the other has not."""
    return nova.services(cfg).keys() - nova.services(to).keys()


# ---- Refused ----


@pytest.mark.parametrize("value", ["ten", "-1", "010", "1.5", "10G", "10000"])
def test_a_size_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(nova.Failure, match=f"^VOLUMES_SIZE={value}: how many GiB, 9999 at most, or 0$") as caught:
        nova.settings_from({"VOLUMES_SIZE": value})
    assert caught.value.code == 2


def test_more_than_the_disk_has_is_refused(volumes: nova.Settings, machine: Machine) -> None:
    machine.disk = 13.9
    with pytest.raises(nova.Failure, match=r"^VOLUMES_SIZE=10: 13\.9 GiB of disk free at .*; the rest needs 4$") as caught:
        nova.check_machine(volumes)
    assert caught.value.code == 2
    machine.disk = 14
    nova.check_machine(volumes)


def test_a_machine_without_loop_devices_is_told_so(volumes: nova.Settings, machine: Machine) -> None:
    machine.path("/dev/loop-control").unlink()
    with pytest.raises(nova.Failure, match=r"^VOLUMES_SIZE=10: no \S*/dev/loop-control, and") as caught:
        nova.check_machine(volumes)
    assert caught.value.code == 2


# ---- What is asked for ----


def test_without_volumes_nothing_of_cinder_is_there(cfg: nova.Settings) -> None:
    for name in added(nova.replace(cfg, VOLUMES_SIZE="10"), cfg):
        assert name not in nova.services(cfg)
    names = [name for service in nova.services(cfg).values() for name in (*service.folders, *service.files, *service.packages)]
    assert [name for name in names if re.search("cinder|volume|nfs|tgt|iscsi", name)] == []


def test_volumes_as_files(volumes: nova.Settings, cfg: nova.Settings) -> None:
    assert not volumes.VOLUMES_LVM
    assert added(volumes, cfg) == {"cinder"}
    assert [window.name for window in nova.SERVICES["cinder"].windows] == [
        "volume-api",
        "volume-sched",
        "volume",
        "volume-backup",
    ]


@pytest.mark.usefixtures("can_lvm")
def test_volumes_by_lvm(volumes: nova.Settings, cfg: nova.Settings) -> None:
    assert volumes.VOLUMES_LVM
    assert not cfg.VOLUMES_LVM
    assert added(volumes, cfg) == {"cinder", "lvm"}
    assert {"lvm2", "tgt", "open-iscsi"} == {*nova.SERVICES["lvm"].packages}


@pytest.mark.usefixtures("can_lvm")
@pytest.mark.parametrize("lacking", ["/dev/mapper/control", "/sys/module/iscsi_tcp/version"])
def test_half_of_what_lvm_needs_is_not_enough(volumes: nova.Settings, machine: Machine, lacking: str) -> None:
    machine.fake("modprobe", "echo not found >&2; exit 1")
    machine.path(lacking).unlink()
    if "sys" in lacking:
        machine.path("/sys/module/iscsi_tcp").rmdir()
    assert not volumes.VOLUMES_LVM


def test_an_initiator_that_can_be_loaded_is_enough(volumes: nova.Settings, machine: Machine) -> None:
    machine.put("/dev/mapper/control")
    machine.fake("modprobe", "echo insmod /lib/modules/iscsi_tcp.ko")
    assert volumes.VOLUMES_LVM
    assert machine.called() == ["modprobe --show-depends iscsi_tcp"]


@pytest.mark.usefixtures("can_lvm")
def test_the_backend_is_the_one_that_the_kernel_can(
    volumes: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (nova.HERE / "conf/cinder.conf.tmpl").read_text()
    nova.make_folders(volumes)
    assert "\nenabled_backends = lvm\n" in nova.render(text, volumes)
    machine.path("/dev/mapper/control").unlink()
    made = nova.render(text, volumes)
    assert "\nenabled_backends = files\n" in made
    assert "\nquota_gigabytes = 10\n" in made


def test_cinder_and_nova_have_one_key_of_256_bits(volumes: nova.Settings) -> None:
    nova.make_folders(volumes)
    made = [nova.render((nova.HERE / name).read_text(), volumes) for name in ("conf/cinder.conf.tmpl", "nova.conf.tmpl")]
    keys = [re.findall(r"^fixed_key = ([0-9a-f]{64})$", text, re.M) for text in made]
    assert keys[0] == keys[1] != []
    assert nova.passwords(nova.STATE)["VOLUMES_SECRET"] not in "".join(made)


@pytest.mark.parametrize("swift, driver", [(False, "posix.Posix"), (True, "swift.Swift")])
def test_backups_go_to_swift_if_it_is_there(volumes: nova.Settings, swift: bool, driver: str) -> None:
    chosen = nova.replace(volumes, USE_SWIFT=swift)
    nova.make_folders(chosen)
    made = nova.render((nova.HERE / "conf/cinder.conf.tmpl").read_text(), chosen)
    assert f"\nbackup_driver = cinder.backup.drivers.{driver}BackupDriver\n" in made


# ---- Made ----


def test_the_room_for_volumes_is_a_file_of_their_size(volumes: nova.Settings, machine: Machine) -> None:
    for name in ("truncate", "mkfs.ext4", "mount", "install"):
        machine.fake(name)
    nova.use_volumes(volumes)
    place = "/run/nova.py/state/volumes"
    assert machine.called() == [
        f"truncate --size=10314M {place}/disk",
        f"mkfs.ext4 -q -m 0 -O '^has_journal,^resize_inode' -T largefile4 {place}/disk",
        f"mount -o loop,discard,nosuid,nodev {place}/disk {place}/local:/share",
        f"install --directory --mode=2771 --group=nova-py-root {place}/local:/share",
    ]
    assert (nova.STATE / "volumes/disk").stat().st_mode & 0o777 == 0o600
    assert not (nova.STATE / "record").exists()


@pytest.mark.usefixtures("can_lvm")
def test_a_volume_group_is_recorded_before_it_is_made(volumes: nova.Settings, machine: Machine) -> None:
    machine.fake("truncate")
    machine.fake("losetup", "[ $1 = --find ] && echo /dev/loop7; exit 0")
    machine.fake("vgs", "exit 5")
    machine.fake("vgcreate", "exit 5")
    with pytest.raises(nova.Failure, match="vgcreate nova-volumes /dev/loop7"):
        nova.use_volumes(volumes)
    undo = ["losetup --detach /dev/loop7", "vgremove --force nova-volumes", "vgchange --activate n nova-volumes"]
    assert recorded() == undo


def test_without_volumes_there_is_no_room(cfg: nova.Settings, machine: Machine) -> None:
    nova.use_volumes(cfg)
    assert machine.called() == []


def test_cinder_is_added_to_an_environment_that_is_there(
    cfg: nova.Settings, volumes: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(nova, "make_environment", lambda: done.append("all of it"))
    monkeypatch.setattr(nova, "add_group", lambda group, _: done.append(group))
    nova.ENV.mkdir(parents=True)
    machine.put("/run/nova.py/setup.cfg")
    for chosen in (cfg, volumes, volumes, cfg):
        nova.install_openstack(chosen)
    assert done == ["all of it", "volumes"]


# ---- Deleted ----


def test_terminate_deletes_volumes_and_waits_until_they_are_gone(cfg: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = MagicMock()
    monkeypatch.setattr(nova, "cloud", MagicMock(return_value=admin))
    storage = admin.block_storage
    storage.attachments.return_value = [MagicMock(id="a")]
    looks = iter([[MagicMock(id="one"), MagicMock(id="two")], [MagicMock(id="two")], []])
    storage.volumes.side_effect = lambda all_projects: next(looks)
    nova.delete_volumes(cfg)
    forced = "?cascade=true&force=true"
    asked = [call.args[0] for call in storage.delete.call_args_list]
    assert asked == ["/attachments/a", f"/volumes/one{forced}", f"/volumes/two{forced}"]
    assert next(looks, "all looked") == "all looked"


def test_a_new_cloud_begins_without_volumes() -> None:
    assert {"state/cinder", "state/volumes"} <= {*nova.SERVICES["cinder"].emptied}
