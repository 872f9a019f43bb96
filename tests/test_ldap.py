# SPDX-License-Identifier: Apache-2.0
"""A directory of users on the faked machine: refused, or asked for in rows, filled or asked, its groups made projects."""

import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

import nova

from .conftest import Machine

SLAPD = {"USE_LDAP": "1"}
YOURS = {"USE_LDAP": "1", "LDAP_URL": "ldap://directory.example:1389", "LDAP_PASSWORD": "the-managers-own"}


def added(environ: dict[str, str]) -> set[str]:
    """The services that these settings ask for beside those of every cloud."""
    return nova.services(nova.settings_from(environ)).keys() - nova.services(nova.settings_from({})).keys()


@pytest.fixture
def opendj(machine: Machine) -> dict[str, str]:
    """The settings that ask for OpenDJ, and a .zip that looks like its own."""
    package = machine.put("/home/me/opendj-4.zip")
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("opendj/setup", "#!/bin/sh")
    return {"USE_OPENDJ": "1", "OPENDJ_PACKAGE": str(package)}


# ---- What is asked for ----


def test_a_directory_of_ours_is_a_slapd() -> None:
    assert added(SLAPD) == {"directory", "slapd"}


def test_a_directory_that_is_there_needs_no_server() -> None:
    assert added(YOURS) == {"directory"}
    assert nova.SERVICES["directory"].windows == []


def test_opendj_takes_slapds_place(opendj: dict[str, str]) -> None:
    assert added(opendj) == {"directory", "opendj"}


def test_keystone_asks_the_directory_that_was_chosen(opendj: dict[str, str]) -> None:
    servers = [nova.values(nova.settings_from(each))["LDAP_SERVER"] for each in (SLAPD, YOURS, opendj)]
    assert servers == ["ldap://127.0.0.1:33890", YOURS["LDAP_URL"], "ldap://127.0.0.1:33890"]
    domains = [nova.values(nova.settings_from(each))["HAS_DIRECTORY"] for each in ({}, SLAPD, YOURS, opendj)]
    assert domains == ["False", "True", "True", "True"]


# ---- Refused ----


@pytest.mark.parametrize("url", ["directory.example", "http://directory.example", "ldap://", "ldap://h:70000", "ldap://a:b@h"])
def test_a_url_that_is_none_of_a_directory_is_refused(url: str) -> None:
    with pytest.raises(nova.Failure, match=r"^LDAP_URL=.*: it looks like ldap://HOST or ldaps://HOST:PORT$") as caught:
        nova.settings_from({**YOURS, "LDAP_URL": url})
    assert caught.value.code == 2


@pytest.mark.parametrize("tree", ["nova.sh", "ou=users", "dc=nova, dc=sh", 'dc="', "dc=nova\n"])
def test_a_tree_that_is_none_is_refused(tree: str) -> None:
    with pytest.raises(nova.Failure, match=r"(?s)^LDAP_TREE=.*: it looks like dc=nova,dc=sh, or like o=nova$") as caught:
        nova.settings_from({**SLAPD, "LDAP_TREE": tree})
    assert caught.value.code == 2


def test_a_directory_that_does_not_answer_is_refused(cfg: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(nova, "answers", lambda place: bool(asked.append(place)))
    for url, place in (("ldap://d:1389", "d:1389"), ("ldap://d", "d:389"), ("ldaps://d/", "d:636")):
        with pytest.raises(nova.Failure, match=f"^LDAP_URL={url}: nobody answers there$") as caught:
            nova.check_machine(nova.replace(cfg, USE_LDAP=True, LDAP_URL=url))
        assert caught.value.code == 2 and asked.pop() == place
    nova.check_machine(nova.replace(cfg, LDAP_URL="ldap://d"))  # nobody asked for it
    assert asked == []


def test_two_directories_are_refused(opendj: dict[str, str]) -> None:
    with pytest.raises(nova.Failure, match=r"^USE_OPENDJ=1: with USE_LDAP=1 there would be two directories") as caught:
        nova.settings_from({**opendj, **SLAPD})
    assert caught.value.code == 2


def test_opendj_without_its_package_is_refused(machine: Machine) -> None:
    machine.fake("dpkg-deb", "exit 2")
    other = machine.put("/home/me/other.zip")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme", "")
    text = machine.put("/home/me/text.deb", "text")
    for package in ("", "/home/me/none.deb", str(other), str(text)):
        with pytest.raises(nova.Failure, match=f"^OPENDJ_PACKAGE={package}: USE_OPENDJ=1 wants the path of") as caught:
            nova.settings_from({"USE_OPENDJ": "1", "OPENDJ_PACKAGE": package})
        assert caught.value.code == 2


@pytest.mark.parametrize(("name", "is_it"), [("opendj", True), ("slapd", False)])
def test_a_deb_is_opendjs_by_its_name(machine: Machine, name: str, is_it: bool) -> None:
    machine.fake("dpkg-deb", f"[ $1 = --field ] && [ $3 = Package ] && echo {name}")
    asked = {"USE_OPENDJ": "1", "OPENDJ_PACKAGE": str(machine.put("/home/me/some.deb"))}
    if is_it:
        assert nova.settings_from(asked).DIRECTORY == "opendj"
    else:
        with pytest.raises(nova.Failure, match="no distribution has it"):
            nova.settings_from(asked)


# ---- Used ----


def used(machine: Machine, environ: dict[str, str]) -> str:
    """What use_directory calls, and with what as its input."""
    for name in ("ldapadd", "ldapsearch"):
        machine.fake(name, "")
    cfg = nova.settings_from(environ)
    nova.make_folders(cfg)
    nova.use_directory(cfg)
    return machine.transcript()


def test_a_directory_of_ours_is_filled(machine: Machine) -> None:
    said = used(machine, {**SLAPD, "LDAP_PASSWORD": "the-managers-own"})
    assert "ldapadd -x -H ldap://127.0.0.1:33890 -o nettimeout=10 -D cn=admin,dc=nova,dc=sh -y /dev/stdin -f" in said
    assert "ldapsearch" not in said
    assert [line for line in said.splitlines() if "ldapadd" in line and "the-managers-own" in line] == []


def test_a_directory_that_was_there_is_only_asked(machine: Machine) -> None:
    said = used(machine, {**YOURS, "LDAP_TREE": "o=company"})
    assert "ldapsearch -x -H ldap://directory.example:1389 -o nettimeout=10 -D cn=admin,o=company -y /dev/stdin" in said
    assert "-b ou=groups,o=company" in said and "ldapadd" not in said


def test_a_tree_that_is_not_there_is_told(machine: Machine) -> None:
    machine.fake("ldapsearch", "echo 'No such object (32)'; exit 32")
    cfg = nova.settings_from(YOURS)
    nova.make_folders(cfg)
    with pytest.raises(nova.Failure, match="ended with exit code 32") as caught:
        nova.use_directory(cfg)
    assert caught.value.tail == ("No such object (32)",) and "LDAP_TREE" in caught.value.hint


def test_each_group_becomes_a_project_of_its_members(cfg: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = MagicMock()
    admin.identity.find_domain.return_value = SimpleNamespace(id="the domain")
    admin.identity.groups.return_value = [groups := SimpleNamespace(name="artists"), SimpleNamespace(name="builders")]
    monkeypatch.setattr(nova, "cloud", MagicMock(return_value=admin))
    nova.create_projects(cfg)
    assert admin.mock_calls == []
    nova.create_projects(nova.replace(cfg, USE_LDAP=True))
    made = [call.kwargs for call in admin.identity.create_project.call_args_list]
    assert made == [{"name": name, "domain_id": "the domain"} for name in ("artists", "builders")]
    first = admin.identity.assign_project_role_to_group.call_args_list[0].args
    assert first == (admin.identity.create_project.return_value, groups, admin.identity.find_role.return_value)


def test_the_script_that_starts_opendj_is_one(opendj: dict[str, str], real: Callable[[str], str], tmp_path: Path) -> None:
    cfg = nova.settings_from(opendj)
    nova.make_folders(cfg)
    script = tmp_path / "opendj"
    script.write_text(nova.render((nova.HERE / "conf/opendj.tmpl").read_text(), cfg))
    subprocess.run([real("bash"), "-n", str(script)], check=True)
    assert re.findall(r"\$(?!{as_user)\S+", script.read_text()) == []
