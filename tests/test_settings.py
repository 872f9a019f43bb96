# SPDX-License-Identifier: Apache-2.0
"""Settings: what is the default, what is found out, what is refused and with which words."""

import dataclasses
import getpass
import json
from pathlib import Path

import pytest

import nova

from .conftest import Machine


def refused(environ: dict[str, str]) -> str:
    """The message of a refusal; usage errors have code 2."""
    with pytest.raises(nova.Failure) as caught:
        nova.settings_from(environ)
    assert caught.value.code == 2
    return str(caught.value)


def test_defaults_are_those_of_the_table_and_of_the_machine() -> None:
    found = {"DIR": Path("nova").absolute(), "INTERFACE": "eth0", "HOST_IP": "192.0.2.10"}
    table = {row.name: row.default for row in dataclasses.fields(nova.Settings)}
    assert dataclasses.asdict(nova.settings_from({})) == {**table, **found}


def test_the_defaults_of_nova_sh() -> None:
    cfg = nova.settings_from({})
    assert (cfg.SCREEN_NAME, cfg.SCREEN_STATUS, cfg.USE_MYSQL, cfg.TEST) == ("nova", True, True, "0")
    assert (cfg.FLOATING_RANGE, cfg.FIXED_RANGE) == ("10.6.0.0/27", "10.0.0.0/24")
    assert (cfg.LIBVIRT_TYPE, cfg.NET_MAN) == ("qemu", "VlanManager")


CHOSEN = {
    "SCREEN_NAME": "my_cloud-2",
    "MYSQL_PASS": "Aa0_.~-x",
    "ADMIN_PASSWORD": "long-enough",
    "INTERFACE": "eth1",
    "HOST_IP": "127.0.0.1",
    "FLOATING_RANGE": "10.7.0.0/29",
    "FIXED_RANGE": "10.8.0.0/28",
    "LIBVIRT_TYPE": "kvm",
    "NET_MAN": "VlanManager",
}


@pytest.mark.parametrize(("name", "value"), CHOSEN.items())
def test_a_chosen_value_is_taken(name: str, value: str) -> None:
    assert getattr(nova.settings_from({name: value}), name) == value


@pytest.mark.parametrize("name", [row.name for row in dataclasses.fields(nova.Settings) if row.name != "DIR"])
def test_an_empty_value_is_the_default(name: str) -> None:
    assert nova.settings_from({name: ""}) == nova.settings_from({})


def test_booleans_are_0_and_1() -> None:
    assert nova.settings_from({"SCREEN_STATUS": "0"}).SCREEN_STATUS is False
    assert nova.settings_from({"SCREEN_STATUS": "1"}).SCREEN_STATUS is True


@pytest.mark.parametrize("folder", ["/srv/two words", "/srv/$HOME", "/srv/a'b", "/srv/new\nline", "/srv/m\u00fcller"])
def test_a_folder_that_services_would_trip_over_is_refused(folder: str) -> None:
    with pytest.raises(nova.Failure, match="letters, digits") as caught:
        nova.settings_from({}, folder)
    assert caught.value.code == 2


def test_the_folder_is_an_argument_not_a_variable() -> None:
    assert nova.settings_from({"DIR": "/elsewhere"}, "/srv/cloud").DIR.name == "cloud"


BOOLEANS = [row.name for row in dataclasses.fields(nova.Settings) if isinstance(row.default, bool)]


@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize("value", ["yes", "true", "2"])
def test_another_spelling_of_a_boolean_is_refused(name: str, value: str) -> None:
    assert refused({name: value}) == f"{name}={value}: say 0 or 1"


@pytest.mark.parametrize(("setting", "beside", "why"), nova.IMPOSSIBLE, ids=str)
def test_what_is_impossible_is_refused_with_its_reason(setting: str, beside: str, why: str) -> None:
    words = (word.partition("=") for word in (setting, beside) if word)
    chosen = {name: value or {"VOLUMES_SIZE": "10"}.get(name, "1") for name, _, value in words}
    assert refused(chosen) == f"{setting if '=' in setting else f'{setting}=1'}: {why}"


SHORT = "8 to 72 of A-Z a-z 0-9 _ . ~ -, since it stands in URLs and files"
OWN = "127.0.0.1, 192.0.2.10, 198.51.100.7"
WRONG = [
    ("LIBVIRT_TYPE", "xen", "LIBVIRT_TYPE=xen: it can be qemu, kvm, lxc, uml"),
    ("NET_MAN", "Flat", "NET_MAN=Flat: it can be VlanManager, FlatDHCPManager, FlatManager"),
    ("SCREEN_NAME", "a b", "SCREEN_NAME=a b: letters, digits, - and _ only, 30 at most"),
    ("SCREEN_NAME", "a.b", "SCREEN_NAME=a.b: letters, digits, - and _ only, 30 at most"),
    ("SCREEN_NAME", "n" * 31, f"SCREEN_NAME={'n' * 31}: letters, digits, - and _ only, 30 at most"),
    ("INTERFACE", "eth9", "INTERFACE=eth9: this machine has lo, eth0, eth1, eth2"),
    ("HOST_IP", "203.0.113.1", f"HOST_IP=203.0.113.1: not an address of this machine; it has {OWN}"),
    ("MYSQL_PASS", "short12", f"MYSQL_PASS: {SHORT}"),
    ("MYSQL_PASS", "x" * 73, f"MYSQL_PASS: {SHORT}"),
    ("MYSQL_PASS", "with'quote'", f"MYSQL_PASS: {SHORT}"),
    ("ADMIN_PASSWORD", "with@host/x", f"ADMIN_PASSWORD: {SHORT}"),
    ("FLOATING_RANGE", "10.6.0.0/30", "FLOATING_RANGE=10.6.0.0/30: too small; /29 is the least"),
    ("FIXED_RANGE", "10.0.0.0/29", "FIXED_RANGE=10.0.0.0/29: too small; /28 is the least"),
    ("FLOATING_RANGE", "127.0.0.0/24", "FLOATING_RANGE=127.0.0.0/24: overlaps 127.0.0.0/8, which is not for machines"),
    ("FIXED_RANGE", "127.6.0.0/16", "FIXED_RANGE=127.6.0.0/16: overlaps 127.0.0.0/8, which is not for machines"),
    ("FLOATING_RANGE", "239.1.0.0/24", "FLOATING_RANGE=239.1.0.0/24: overlaps 224.0.0.0/3, which is not for machines"),
    ("FIXED_RANGE", "169.254.0.0/24", "FIXED_RANGE=169.254.0.0/24: overlaps 169.254.0.0/16, which is not for machines"),
    ("FIXED_RANGE", "126.0.0.0/7", "FIXED_RANGE=126.0.0.0/7: overlaps 127.0.0.0/8, which is not for machines"),
    ("FIXED_RANGE", "0.0.0.0/24", "FIXED_RANGE=0.0.0.0/24: overlaps 0.0.0.0/8, which is not for machines"),
    ("FIXED_RANGE", "240.0.0.0/24", "FIXED_RANGE=240.0.0.0/24: overlaps 224.0.0.0/3, which is not for machines"),
    ("FIXED_RANGE", "10.6.0.0/16", "FLOATING_RANGE=10.6.0.0/27: overlaps FIXED_RANGE=10.6.0.0/16"),
    ("FLOATING_RANGE", "10.0.0.0/29", "FLOATING_RANGE=10.0.0.0/29: overlaps FIXED_RANGE=10.0.0.0/24"),
    ("FIXED_RANGE", "192.0.0.0/16", "FIXED_RANGE=192.0.0.0/16: this machine has a route to 192.0.2.0/24 through eth0"),
    ("FLOATING_RANGE", "192.0.2.64/27",
     "FLOATING_RANGE=192.0.2.64/27: this machine has a route to 192.0.2.0/24 through eth0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_a_value_that_cannot_be_is_refused(name: str, value: str, message: str) -> None:
    assert refused({name: value}) == message


@pytest.mark.parametrize("name", ["FLOATING_RANGE", "FIXED_RANGE"])
@pytest.mark.parametrize("value", ["10.6.0.1/27", "10.6.0.0/33", "fd00::/64", "ten"])
def test_what_is_not_a_range_is_refused(name: str, value: str) -> None:
    assert refused({name: value}).startswith(f"{name}={value}: not a range of IPv4 addresses (")


def test_a_newline_after_a_password_is_refused() -> None:
    assert refused({"MYSQL_PASS": "trailing-newline\n"}) == f"MYSQL_PASS: {SHORT}"


@pytest.mark.parametrize("name", nova.SECRETS)
def test_a_refused_password_is_not_shown(name: str) -> None:
    assert "sec ret" not in refused({name: "sec ret"})


# ---- -p ----


@pytest.fixture
def typed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a user at a terminal is going to type, line by line; empty lines after that."""
    machine.put("/dev/tty")
    lines: list[str] = []
    monkeypatch.setattr(getpass, "getpass", lambda prompt: lines.pop(0) if lines else "")
    return lines


def test_a_typed_password_is_taken_when_it_is_the_same_twice(typed: list[str]) -> None:
    typed += ["mysql-typed", "mysql-typed", "", "service-typed", "service-typed"]
    cfg = nova.prompted(nova.settings_from({}), "run")
    chosen = [name for name in nova.SECRETS if getattr(cfg, name)]
    assert chosen == ["MYSQL_PASS", "SERVICE_PASSWORD"]
    assert (cfg.MYSQL_PASS, cfg.SERVICE_PASSWORD) == ("mysql-typed", "service-typed")


def test_what_is_in_the_environment_or_known_is_not_asked_for(typed: list[str], machine: Machine) -> None:
    cfg = nova.settings_from({"ADMIN_PASSWORD": "from-the-environment"}, str(machine.path("/home/me/nova")))
    machine.put("/home/me/nova/state/passwords.json", json.dumps(dict.fromkeys(nova.SECRETS[2:], "known-from-before")))
    typed += ["mysql-typed", "mysql-typed", "never-asked"]
    assert nova.prompted(cfg, "install") == nova.replace(cfg, MYSQL_PASS="mysql-typed")  # noqa: S106
    assert typed == ["never-asked"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["typed-well", "typed-badly"], "MYSQL_PASS: that was not the same twice"),
        (["short"], f"MYSQL_PASS: {SHORT}"),
        (["", "with@host/x"], f"ADMIN_PASSWORD: {SHORT}"),
    ],
)
def test_what_is_typed_wrongly_is_refused_and_not_shown(typed: list[str], lines: list[str], message: str) -> None:
    typed += lines
    with pytest.raises(nova.Failure) as caught:
        nova.prompted(nova.settings_from({}), "run_detached")
    assert (str(caught.value), caught.value.code) == (message, 2)


def test_without_a_terminal_nobody_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert nova.main(["-p", "run"]) == 2
    assert capsys.readouterr().err.startswith("nova.py: -p asks at a terminal, and there is none\n")


def closed(prompt: str) -> str:
    """What getpass does at the end of its input."""
    raise EOFError


def test_a_terminal_that_is_closed_is_none(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getpass", closed)
    with pytest.raises(nova.Failure, match="there is none"):
        nova.prompted(nova.settings_from({}), "run")


@pytest.mark.parametrize("verb", ["branch", "terminate", "clean", "scrub", "settings"])
def test_a_verb_that_makes_no_passwords_does_not_ask(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert nova.main(["-p", verb]) == 2
    assert capsys.readouterr().err == f"nova.py: {verb} makes no passwords: it does not take -p\n"


# ---- What the machine says ----


@pytest.mark.parametrize(
    ("gateway", "environ", "interface", "address"),
    [
        ("eth0", {}, "eth0", "192.0.2.10"),
        ("eth1", {}, "eth1", "198.51.100.7"),
        ("eth0", {"INTERFACE": "eth1"}, "eth1", "198.51.100.7"),
        ("eth0", {"INTERFACE": "eth1", "HOST_IP": "192.0.2.10"}, "eth1", "192.0.2.10"),
        ("", {"HOST_IP": "127.0.0.1"}, "", "127.0.0.1"),
        ("", {"INTERFACE": "lo"}, "lo", "127.0.0.1"),
    ],
)
def test_host_ip_is_found(machine: Machine, gateway: str, environ: dict[str, str], interface: str, address: str) -> None:
    machine.gateway = gateway
    cfg = nova.settings_from(environ)
    assert (interface, address) == (cfg.INTERFACE, cfg.HOST_IP)


def test_without_a_default_route_it_says_what_host_ip_could_be(machine: Machine) -> None:
    machine.gateway = ""
    assert refused({}) == f"no default route, so no HOST_IP to find: set HOST_IP to one of {OWN}"


def test_an_interface_without_an_address_is_told_apart_from_no_route() -> None:
    message = refused({"INTERFACE": "eth2"})
    assert "eth2" in message
    assert "no default route" not in message


def test_the_default_route_is_in_nobodys_way() -> None:
    assert nova.settings_from({"FIXED_RANGE": "172.16.0.0/16"}).FIXED_RANGE == "172.16.0.0/16"


def test_our_own_bridge_is_in_nobodys_way(machine: Machine) -> None:
    """br-ex is there while a cloud runs, and clean, terminate and scrub read the settings too."""
    table = machine.path("/proc/net/route")
    table.write_text(table.read_text() + "br-ex\t0000060A\t00000000\t0001\t0\t0\t0\tE0FFFFFF\n")
    assert nova.settings_from({}).FLOATING_RANGE == "10.6.0.0/27"
    table.write_text(table.read_text().replace("br-ex", "br-exx"))
    assert refused({}) == "FLOATING_RANGE=10.6.0.0/27: this machine has a route to 10.6.0.0/27 through br-exx"


# ---- The verb settings ----


def test_settings_shows_every_variable_and_no_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_PASSWORD", "not-to-be-shown")
    monkeypatch.setenv("TEST", "0")
    monkeypatch.setenv("SCREEN_NAME", "other")
    assert nova.main(["settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:].split("=")[0] for line in lines] == [row.name for row in dataclasses.fields(nova.Settings)]
    assert lines[0].startswith(f"  DIR={Path('nova').absolute()} ")
    assert "* ADMIN_PASSWORD=(set)               password of the cloud's user admin; generated when empty" in lines
    assert "  MYSQL_PASS=                        password of that MariaDB; generated when empty" in lines
    assert "* SCREEN_NAME=other                  name of the screen session" in lines
    assert "  TEST=0                             1: run a part of nova's unit tests first; all: all of them" in lines
    assert "not-to-be-shown" not in "\n".join(lines)
