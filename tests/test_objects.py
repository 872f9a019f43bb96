# SPDX-License-Identifier: Apache-2.0
"""Object storage on the faked machine: refused or asked for, guarded, emptied."""

import os
import re

import pytest

import nova

from .conftest import Machine

TABLES = ("FOLDERS", "CONFIG_FILES", "SERVERS", "CONTROL", "ENDPOINTS", "GROUPS")


@pytest.fixture
def objects(cfg: nova.Settings) -> nova.Settings:
    """A cloud's folder with the files that USE_SWIFT=1 asks for."""
    chosen = nova.replace(cfg, USE_SWIFT=True)
    nova.make_folders(chosen)
    return chosen


def rendered(cfg: nova.Settings, name: str) -> str:
    return nova.render((nova.HERE / "conf" / name).read_text(), cfg)


def test_without_objects_nothing_of_swift_is_there(cfg: nova.Settings, objects: nova.Settings) -> None:
    assert nova.services(objects).keys() - nova.services(cfg).keys() == {"swift"}
    found = [str((each.folders, each.files, each.window)) for each in nova.services(cfg).values()]
    assert [text for text in found if re.search("swift|object", text)] == []
    assert nova.SERVICES["swift"].packages == {}


def test_a_file_system_without_extended_attributes_is_refused(
    cfg: nova.Settings, objects: nova.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    nova.check_machine(cfg)
    with pytest.raises(nova.Failure, match=r"^USE_SWIFT=1: .*attributes, and /.* is on one without \(Operation not") as caught:
        nova.check_machine(objects)
    assert caught.value.code == 2


def test_looking_for_extended_attributes_leaves_nothing(objects: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(os, "setxattr", lambda file, name, value: tried.append(name))
    before = sorted(objects.DIR.rglob("*"))
    nova.check_machine(objects)
    assert tried == ["user.swift"]
    assert sorted(objects.DIR.rglob("*")) == before


def test_the_port_behind_the_proxy_is_guarded(objects: nova.Settings, cfg: nova.Settings, machine: Machine) -> None:
    for name in ("ovs-vsctl", "ip", "nft", "modprobe"):
        machine.fake(name)
    machine.fake("sysctl", "echo 1")
    nova.create_bridges(cfg)
    assert "swift.nft" not in machine.transcript()
    nova.create_bridges(objects)
    assert machine.called()[-1] == "nft -f /run/nova.py/state/conf/swift.nft"
    port = nova.PATHS["SWIFT_PORT"]
    assert f"tcp dport {port} meta skuid != {{ root, {nova.USER} }} reject" in rendered(objects, "swift.nft.tmpl")
    assert f"\nbind_ip = 127.0.0.1\nbind_port = {port}\n" in rendered(objects, "swift-store.conf.tmpl")


def test_clients_find_each_projects_account_where_the_proxy_listens(objects: nova.Settings) -> None:
    _, url = nova.SERVICES["swift"].endpoint
    assert nova.render(url, objects) == "http://192.0.2.10:3333/v1/AUTH_$(project_id)s"
    assert 'export S3_URL="http://192.0.2.10:3333/"\n' in nova.render((nova.HERE / "novarc.tmpl").read_text(), objects)
    assert "\nbind_ip = 192.0.2.10\nbind_port = 3333\n" in rendered(objects, "swift-proxy.conf.tmpl")


def test_swifts_processes_are_their_users(objects: nova.Settings) -> None:
    for name in ("swift-proxy.conf.tmpl", "swift-store.conf.tmpl"):
        assert f"\nuser = {nova.USER}\n" in rendered(objects, name)


def test_a_new_cloud_begins_without_objects() -> None:
    assert "state/swift" in nova.SERVICES["swift"].emptied
