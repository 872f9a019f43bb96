# SPDX-License-Identifier: Apache-2.0
"""Each verb, and each step of it, on a faked machine: the commands (tests/expected) and what is there afterwards.

What speaks with OpenStack's APIs is left to tests/machine.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import psutil
import pytest

import nova

from .conftest import EXPECTED, Leak, Machine, recorded

Fake = Callable[..., None]
Expect = Callable[[str], None]

LAST = '"${@: -1}"'  # a script's last argument
SESSION = '[ "$1" != -ls ] || printf "There is a screen on:\\n\\t4242.nova\\t(Detached)\\n"'
NO_SESSION = '[ "$1" != -ls ] || { echo "No Sockets found"; exit 1; }'
UNPACK = f"""d={LAST}/nova-34; /bin/mkdir -p $d/nova/db $d/nova/wsgi $d/bin
echo 1 >$d/nova/api.py; echo 2 >$d/bin/tool; echo >$d/nova/wsgi/osapi_compute.py; echo name = nova >$d/setup.cfg"""
VENV = f'case "$*" in *" venv "*) /bin/mkdir -p {LAST}/lib/python3.13/site-packages;; esac'
MAKE_ROOT = "/bin/mkdir -p $1/var/lib/dpkg; /bin/touch $1/var/lib/dpkg/status"


@pytest.fixture
def installable(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine on which nothing is installed yet, and everything can be; what would be downloaded is not."""
    monkeypatch.setattr(sys, "executable", str(machine.path("/usr/bin/python3.11")))
    monkeypatch.setattr(sys, "_base_executable", str(machine.path("/usr/bin/python3.11")))
    ready = lambda place: ("keystone.wsgi" if ":5000" in place else "mariadbd") in machine.transcript()
    monkeypatch.setattr(nova, "answers", ready)
    monkeypatch.setattr(nova, "register_services", lambda cfg: machine.fake("registered") or nova.do("registered"))
    monkeypatch.setattr(nova, "create_accounts", lambda cfg: None)
    scripts = {
        "mount": machine.mounting(), "tar": UNPACK, "screen": NO_SESSION, "bash": "exec /bin/sleep 60",
        "mariadbd": "echo mariadbd Ver 11.8", nova.LIBEXEC / "make-root": MAKE_ROOT,
        nova.TOOL / "uv": VENV, nova.CLONE / ".tool/uv": VENV,
    }  # fmt: skip
    for name, script in scripts.items():
        machine.fake(name, script)
    quiet = "cp sync chmod apt-get dpkg useradd groupadd install sh python3 setpriv mariadb apt-config"
    for name in (*quiet.split(), nova.ENV / "bin/python", sys.executable):
        machine.fake(name)
    known = "".join(f"Package: {name}\nStatus: install ok installed\n\n" for name in (*packages(), "brz"))
    machine.fake("dpkg", f"printf %s '{known}' >{nova.ROOTFS}/var/lib/dpkg/status")
    return machine


def folder(machine: Machine) -> str:
    return str(machine.path("/home/me/nova"))


def all_there(machine: Machine) -> None:
    """From now on every package is there; no call is on record."""
    have(machine, *packages())
    machine.calls.unlink()


def packages() -> list[str]:
    """What every cloud has."""
    return [name for service in nova.SERVICES.values() if not service.asked_for_by for name in service.packages]


def have(machine: Machine, *names: str, state: str = "install ok installed") -> None:
    """The dpkg of the cloud's Debian knows these packages."""
    machine.put(nova.ROOTFS / "var/lib/dpkg/status", "".join(f"Package: {name}\nStatus: {state}\n\n" for name in names))


# ---- branch ----


@pytest.fixture
def branched(cfg: nova.Settings, installable: Machine) -> nova.Settings:
    nova.branch(cfg)
    return cfg


def test_branch(installable: Machine, expect: Expect) -> None:
    assert nova.main(["branch", "pypi:nova", folder(installable)]) == 0
    expect("branch")


def test_branch_makes_the_tree_its_callers(cfg: nova.Settings, installable: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "1000")
    nova.branch(cfg)
    assert (nova.HOME / "nova/api.py").read_text() == "1\n"
    owners = {Path(path).name: owner for path, owner in installable.owners.items() if "/nova-34/" in path}
    files = ("nova", "db", "wsgi", "osapi_compute.py", "api.py", "bin", "tool", "setup.cfg")
    assert owners == dict.fromkeys(files, "1000")
    assert installable.owners[str(nova.HOME).removeprefix(str(installable.root))] == "1000", "and so is the folder: git insists"


def test_branch_again_replaces_the_tree_and_nothing_else(branched: nova.Settings) -> None:
    (nova.HOME / "novarc").write_text("mine")
    (nova.HOME / "nova/api.cpython-311.pyc").write_text("made by Python")
    nova.branch(branched, "pypi:nova")
    assert (nova.HOME / "novarc").read_text() == "mine"
    assert not (nova.HOME / "nova/api.cpython-311.pyc").exists()
    assert (nova.STATE / "tree.json").exists()


@pytest.mark.parametrize("changed", ["nova/api.py", "nova/new.py", "bin/new/er"])
def test_branch_does_not_delete_a_change(branched: nova.Settings, changed: str) -> None:
    path = nova.HOME / changed
    path.parent.mkdir(exist_ok=True)
    path.write_text("a day's work")
    with pytest.raises(nova.Failure, match="Refusing to branch") as caught:
        nova.branch(branched)
    assert str(caught.value) == f"Refusing to branch (1 changes in {branched.DIR} would be lost: {changed})"
    assert path.read_text() == "a day's work"


def test_branch_that_was_cut_off_is_begun_again(branched: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nova, "give", lambda path, owner: interrupt() if path.name == "tool" else None)
        nova.branch(branched)
    assert not (nova.HOME / "bin/tool").exists()
    nova.branch(branched)
    assert (nova.HOME / "bin/tool").read_text() == "2\n"
    assert nova.changes() == []


@pytest.mark.parametrize(
    "word", ["nova2", "git+nova", "git+ext::sh", "svn+https://example.org/nova", "https://example.org/nova", "pypi:"]
)
def test_a_form_of_source_that_there_is_not_is_refused_before_dir_is_made(
    machine: Machine, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nova.main(["branch", word, folder(machine)]) == 2
    assert f"SOURCE {word}: there is no such path; it can be pypi:nova" in capsys.readouterr().err
    assert not Path(folder(machine)).exists()


@pytest.mark.parametrize(
    ("word", "source"),
    [
        ("", ("locked", "", "")),
        ("pypi:nova", ("locked", "", "")),
        ("pypi:nova==33.0.0", ("pypi", "", "33.0.0")),
        ("lp:nova", ("moved", "lp:nova", "")),
        ("lp:~me/nova/mine", ("bzr", "lp:~me/nova/mine", "")),
        ("git+https://example.org/nova", ("git", "https://example.org/nova", "")),
        ("git+ssh://git@example.org:29418/openstack/nova", ("git", "ssh://git@example.org:29418/openstack/nova", "")),
        ("git+ssh://git@example.org/nova@stable/2026.2", ("git", "ssh://git@example.org/nova", "stable/2026.2")),
        ("git+file:///srv/nova.git@34.0.0", ("git", "file:///srv/nova.git", "34.0.0")),
        ("https://me@example.org/nova.git@topic", ("git", "https://me@example.org/nova.git", "topic")),
        ("bzr+https://example.org/nova", ("bzr", "https://example.org/nova", "")),
        ("bzr+ssh://me@example.org/nova", ("bzr", "bzr+ssh://me@example.org/nova", "")),
    ],
)
def test_source_is_known_by_its_form(word: str, source: tuple[str, str, str]) -> None:
    assert nova.source_from(word) == source


def test_a_password_in_source_is_refused_and_shown_nowhere(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert nova.main(["branch", "git+https://me:secret@example.org/nova", folder(machine)]) == 2
    assert "a password has no place in a command line" in (said := capsys.readouterr().err) and "secret" not in said


def test_another_release_is_asked_for_by_its_version(cfg: nova.Settings, installable: Machine) -> None:
    nova.released("33.0.0")
    words = r"/opt/nova.py/libexec/fetch-release.py nova '\.tar\.gz$' /run/nova.py/state/cache/nova.tar.gz 33.0.0"
    assert installable.called()[-1] == f"/usr/bin/python3.11 {words}"


def test_what_a_source_needs_is_installed_only_for_that_source(cfg: nova.Settings, installable: Machine) -> None:
    with pytest.raises((nova.Failure, Leak)):
        nova.branch(cfg, "bzr+https://example.org/nova")
    assert re.search(r"apt-get .* install .* brz$", installable.transcript(), re.M)
    installable.calls.unlink()
    nova.branch(cfg)
    assert not asked_for_packages(installable)


def test_a_debian_that_was_cut_off_is_made_anew(cfg: nova.Settings, installable: Machine) -> None:
    def make() -> None:
        nova.make_root(cfg)
        nova.install_packages({"sudo"})

    installable.fake(nova.LIBEXEC / "make-root", MAKE_ROOT + "; exit 1")
    with pytest.raises(nova.Failure, match=r"(?s)make-root .*ended with exit code 1"):
        make()
    installable.fake(nova.LIBEXEC / "make-root", MAKE_ROOT)
    installable.fake("dpkg", "exit 1")
    with pytest.raises(nova.Failure, match=r"(?s)dpkg .*ended with exit code 1"):
        make()
    installable.put(nova.ROOTFS / "half")
    installable.fake("dpkg")
    for _ in "ab":
        make()
    assert not (nova.ROOTFS / "half").exists()
    assert installable.transcript().count("/make-root ") == 3


OLDER = "The package `nova` requires `oslo-db>=99`, but `17.0.0` is installed"


@pytest.mark.parametrize(
    ("said", "fails"),
    [([nova.LEFT_OUT], False), ([nova.LEFT_OUT, OLDER], True), ([OLDER], True), (["error: no such environment"], True)],
    ids=["numpy alone", "numpy and another", "another", "uv itself"],
)
def test_of_what_uv_misses_only_numpy_is_left_out_on_purpose(installable: Machine, said: list[str], fails: bool) -> None:
    lines = "; ".join(f"echo {shlex.quote(line)}" for line in said)
    installable.fake(nova.CLONE / ".tool/uv", f'case "$*" in *" pip check "*) {lines}; exit 1;; esac')
    with pytest.raises(nova.Failure) if fails else contextlib.nullcontext():
        nova.make_environment()


def asked_for_packages(machine: Machine) -> list[str]:
    return [line for line in machine.called() if re.search(r"^(\S+=\S+ )?(apt-get|dpkg) ", line)]


def test_the_first_packages_are_installed_by_one_call_of_dpkg(cfg: nova.Settings, installable: Machine) -> None:
    nova.make_root(cfg)
    nova.install_packages({"sudo"})
    apt = "/run/nova.py/state/cache/apt"
    words = f"-qq -y --download-only install '?essential' {' '.join(nova.FIRST)} sudo"
    install = "DEBIAN_FRONTEND=noninteractive dpkg --skip-same-version --force-depends --install --recursive"
    first, download, rest = asked_for_packages(installable)
    assert {first, download} == {f"{install} {apt}/first", f"APT_CONFIG={apt}/conf apt-get {words}"}, "side by side"
    assert rest == f"{install} {apt}/archives"


def test_where_mmdebstrap_has_installed_the_first_packages_the_others_are_apts(cfg: nova.Settings, installable: Machine) -> None:
    installable.fake(nova.LIBEXEC / "make-root", f"{MAKE_ROOT}; printf 'Package: apt\nStatus: install ok installed\n' >$_")
    nova.make_root(cfg)
    nova.install_packages({"sudo"})
    assert asked_for_packages(installable) == ["DEBIAN_FRONTEND=noninteractive apt-get -qq -y install sudo"]


@pytest.mark.parametrize("name", sorted(nova.OWN))
def test_a_source_with_a_name_of_nova_pys_own_is_refused(branched: nova.Settings, installable: Machine, name: str) -> None:
    installable.fake("tar", UNPACK + f"; echo >$d/{name}")
    with pytest.raises(nova.Failure, match=f"it has {name}, where nova.py keeps its own") as caught:
        nova.branch(branched)
    assert caught.value.code == 2
    assert (nova.HOME / "bin/tool").read_text() == "2\n"


def test_branch_leaves_a_running_cloud_its_tree(branched: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "processes", lambda: [psutil.Process()])
    with pytest.raises(nova.Failure, match="1 processes of the cloud run from"):
        nova.branch(branched)
    assert (nova.HOME / "bin/tool").read_text() == "2\n"


def test_another_tree_gets_another_environment(branched: nova.Settings, installable: Machine) -> None:
    nova.install_openstack(branched)
    installable.calls.unlink()
    nova.install_openstack(branched)
    assert "venv" not in installable.transcript()
    nova.branch(branched)
    nova.install_openstack(branched)
    assert "uv --quiet --no-config venv" in installable.transcript()


def test_the_trees_version(branched: nova.Settings) -> None:
    assert nova.tree_version() == re.search(r'name = "nova"\nversion = "(.+)"', (nova.HERE / "uv.lock").read_text())[1]  # type: ignore[index]
    (nova.HOME / "PKG-INFO").write_text("Metadata-Version: 2.4\nVersion: 35.0.0.0rc1\nName: nova\n")
    assert nova.tree_version() == "35.0.0.0rc1"


# ---- install ----


def test_install(installable: Machine, in_order: None, expect: Expect) -> None:
    assert nova.main(["install", folder(installable)]) == 0
    expect("install")


def test_install_again_changes_nothing(installable: Machine, in_order: None) -> None:
    assert nova.main(["install", folder(installable)]) == 0
    all_there(installable)
    assert nova.main(["install", folder(installable)]) == 0
    looks = ("mount ", "screen -ls", "mariadbd --version", "/opt/nova.py/libexec/machine-files.py ")
    assert [line for line in installable.called() if not line.startswith(looks)] == []


def test_novncs_page_is_unpacked_once_and_only_where_consoles_are_asked_for(
    installable: Machine, in_order: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = lambda: re.findall("apt-get -qq download .*|dpkg-deb --extract .*", installable.transcript())
    page = nova.STATE / "novnc"
    installable.fake("apt-get", f'[ "$2" != download ] || echo >{page}/novnc_1_all.deb')
    installable.fake("dpkg-deb")
    assert nova.main(["install", folder(installable)]) == 0
    assert asked() == []
    monkeypatch.setenv("CONSOLES", "1")
    for _ in "ab":
        assert nova.main(["install", folder(installable)]) == 0
        assert asked() == [
            "apt-get -qq download novnc",
            "dpkg-deb --extract /run/nova.py/state/novnc/novnc_1_all.deb /run/nova.py/state/novnc",
        ]


def test_packages_already_there_are_not_installed(cfg: nova.Settings, installable: Machine) -> None:
    have(installable, "screen")
    nova.install_packages(set(packages()))
    install = next(line for line in installable.called() if " install " in line).split()
    assert "procps" in install
    assert "screen" not in install


def test_packages_cut_off_are_finished_by_the_next_call(cfg: nova.Settings, installable: Machine) -> None:
    have(installable, *packages(), state="install ok half-configured")
    nova.install_packages(set(packages()))
    assert installable.called()[0] == "DEBIAN_FRONTEND=noninteractive dpkg --configure -a"
    all_there(installable)
    nova.install_packages(set(packages()))
    assert installable.called() == []


def test_old_lists_of_packages_are_renewed_first(cfg: nova.Settings, installable: Machine) -> None:
    lists = installable.put(nova.ROOTFS / "var/lib/apt/lists/deb").parent
    have(installable, "apt")
    nova.install_packages({"screen"})
    assert "apt-get -qq update" not in installable.transcript()
    os.utime(lists, (0, 0))
    nova.install_packages({"screen"})
    assert "apt-get -qq update" in installable.transcript()


def test_a_changed_lock_makes_the_environment_again(branched: nova.Settings, installable: Machine) -> None:
    nova.install_openstack(branched)
    (nova.ENV / "made-from").write_text("another lock")
    installable.calls.unlink()
    nova.install_openstack(branched)
    assert "uv --quiet --no-config venv" in installable.transcript()


def test_users_have_numbers_that_nobody_else_has(cfg: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    nova.check_file_system(nova.HOME)
    monkeypatch.setattr(nova.pwd, "getpwuid", lambda number: SimpleNamespace(pw_name="ann"))
    with pytest.raises(nova.Failure, match="the user ann of this machine has the number") as caught:
        nova.check_file_system(nova.HOME)
    assert caught.value.code == 2


def test_folders_have_their_owner_and_services_folders_are_private(
    cfg: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    nova.make_folders(cfg)
    asked = {name for service in nova.services(cfg).values() for name in service.folders}
    folders = {name: owner for service in nova.SERVICES.values() for name, owner in service.folders.items()}
    assert {name for name in folders if (nova.HOME / name).exists()} == asked
    monkeypatch.setattr(nova, "services", lambda cfg: nova.SERVICES)
    nova.make_folders(cfg)
    assert {name: machine.owners[f"/run/nova.py/{name}"] for name in folders} == {
        name: nova.USERS[owner].partition(":")[0] for name, owner in folders.items()
    }
    modes = {(owner, (nova.HOME / name).stat().st_mode & 0o777) for name, owner in folders.items()}
    assert modes == {("service", 0o700), ("root", 0o755), ("privsep", 0o711)}


def test_passwords_are_made_once_and_a_chosen_one_replaces(cfg: nova.Settings) -> None:
    nova.make_folders(nova.replace(cfg, ADMIN_PASSWORD=""))
    first = json.loads((nova.STATE / "passwords.json").read_text())
    assert len(set(first.values())) == len(nova.SECRETS)
    assert min(map(len, first.values())) >= 14
    nova.make_folders(nova.replace(cfg, ADMIN_PASSWORD="chosen-later"))  # noqa: S106
    assert json.loads((nova.STATE / "passwords.json").read_text()) == {**first, "ADMIN_PASSWORD": "chosen-later"}


def test_keys_of_keystone_are_made_once(cfg: nova.Settings, machine: Machine) -> None:
    (nova.ROOTFS / "etc/sudoers.d").mkdir(parents=True)
    nova.make_folders(cfg)
    nova.write_config(cfg)
    keys = {p: p.read_bytes() for p in nova.STATE.glob("keystone/*/*")}
    assert len(set(keys.values())) == 4
    nova.write_config(cfg)
    assert {p: p.read_bytes() for p in nova.STATE.glob("keystone/*/*")} == keys


@pytest.fixture
def filled(cfg: nova.Settings, installable: Machine, in_order: None) -> nova.Settings:
    """Settings of a cloud whose databases were just made; no call is on record."""
    nova.make_folders(cfg)
    nova.make_databases(cfg)
    installable.calls.unlink()
    return cfg


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, False),
        ({"FIXED_RANGE": "10.9.0.0/24"}, False),
        ({"HOST_IP": "127.0.0.1"}, True),
        ({"ADMIN_PASSWORD": "another-one"}, True),
        ({"SERVICE_PASSWORD": "another-one"}, True),
        ({"USE_MYSQL": False}, True),
    ],
)
def test_databases_are_made_again_when_what_is_in_them_changed(
    filled: nova.Settings, machine: Machine, change: dict[str, str], again: bool
) -> None:
    changed = nova.replace(filled, **change)
    nova.make_folders(changed)
    nova.make_databases(changed)
    assert ("mariadb-install-db" in machine.transcript()) == again


def test_databases_of_mariadb_and_of_sqlite_are_both_kept(filled: nova.Settings, machine: Machine) -> None:
    chosen = nova.replace(filled, USE_MYSQL=False)
    nova.make_databases(chosen)
    created = [line for line in machine.called() if line.startswith("mariadb ")]
    assert [line.partition("<<< ")[2] for line in created] == ["'CREATE DATABASE neutron;'"]
    cells = [line for line in machine.called() if "--database_connection" in line]
    assert len(cells) == 2
    assert [line for line in cells if "sqlite:////run/nova.py/state/databases/sqlite/nova_cell" not in line] == []
    machine.calls.unlink()
    machine.fake("cp")
    for cfg in (filled, chosen):
        nova.make_databases(cfg)
        nova.empty_databases(cfg)
    assert "mariadb-install-db" not in machine.transcript()
    copied = [shlex.split(line)[-2:] for line in machine.called() if line.startswith("cp ")]
    assert copied == [[f"/run/nova.py/state/cache/{kept}", "/run/nova.py/state/databases"] for kept in ("mysql", "sqlite")]


def test_no_secret_is_in_a_command_line() -> None:
    """In a transcript a secret is $NAME: after the command's words (its input) or before them (its environment) only."""
    lines = [line for path in EXPECTED.glob("*.txt") for line in path.read_text().splitlines()]
    words = [re.sub(r"^(\w+=('[^']*'|\S*) )*", "", line).partition(" <<< ")[0] for line in lines]
    assert any("$ADMIN_PASSWORD" in line for line in lines)
    assert [line for line in words if any(f"${name}" in line for name in nova.SECRETS)] == []


def test_databases_are_made_again_when_a_migration_changed(filled: nova.Settings, machine: Machine) -> None:
    migration = machine.put(nova.HOME / "nova/db/main/1.py", "one")
    nova.make_databases(filled)
    machine.calls.unlink()
    nova.make_databases(filled)
    assert "mariadb-install-db" not in machine.transcript()
    migration.write_text("two")
    nova.make_databases(filled)
    assert "mariadb-install-db" in machine.transcript()


def test_databases_that_could_not_be_filled_are_made_again(filled: nova.Settings, machine: Machine) -> None:
    changed = nova.replace(filled, ADMIN_PASSWORD="another-one")  # noqa: S106
    nova.make_folders(changed)
    machine.fake("mariadb", "exit 1")
    for _ in "ab":
        with pytest.raises(nova.Failure, match="mariadb "):
            nova.make_databases(changed)
    nova.make_folders(filled)
    with pytest.raises(nova.Failure, match="mariadb "):
        nova.make_databases(filled)  # what was made for these settings is no longer there
    assert machine.transcript().count("mariadb-install-db") == 3


def test_the_password_of_admin_is_in_no_command(cfg: nova.Settings, installable: Machine) -> None:
    nova.make_folders(cfg)
    nova.fill_database(cfg, nova.Service("", databases=("keystone",), fill=("keystone-manage bootstrap",)))
    environment, _, words = installable.called()[-1].partition("setpriv")
    assert "OS_BOOTSTRAP_PASSWORD=$ADMIN_PASSWORD " in environment
    assert "$ADMIN_PASSWORD" not in words


# ---- run ----


@pytest.fixture
def runnable(installable: Machine, monkeypatch: pytest.MonkeyPatch, in_order: None) -> Machine:
    """A machine on which a cloud could run. The steps that speak with the APIs are not part of it."""
    installable.fake("screen", NO_SESSION + f'; [ "$1" != -c ] || echo -n >{installable.path("/srv/session")}')
    monkeypatch.setattr(nova, "session", lambda cfg: 4242 * installable.path("/srv/session").exists())
    monkeypatch.setattr(nova, "answers", lambda place: True)
    monkeypatch.setattr(nova, "started", lambda *_: no_service())
    monkeypatch.setattr(nova, "inventory", lambda: "a machine")
    for name in ("ask_keystone", "create_flavors", "create_networks", "upload_image", "wait_for_hosts", "smoke_test"):
        monkeypatch.setattr(nova, name, lambda cfg: None)
    installable.fake("sysctl", '[ "$1" != -n ] || echo 0')
    for name in ("cp", "ip", "nft", "modprobe"):
        installable.fake(name)
    links = [installable.path("/sys/class/net", name) for name in nova.BRIDGES]
    installable.fake("ovs-vsctl", f'case "$*" in *add-br*) /bin/mkdir -p {shlex.join(map(str, links))};; esac')
    return installable


@contextmanager
def no_service() -> Iterator[None]:
    yield


@pytest.fixture
def runnable_installed(runnable: Machine) -> Machine:
    """The same after install; no call is on record."""
    assert nova.main(["install", folder(runnable)]) == 0
    all_there(runnable)
    return runnable


def test_run_detached(runnable_installed: Machine, expect: Expect, capsys: pytest.CaptureFixture[str]) -> None:
    machine = runnable_installed
    old = machine.put(nova.STATE / "log/of-an-earlier-one.log")
    assert nova.main(["run_detached", folder(machine)]) == 0
    expect("run_detached")
    assert re.findall(r"'screen -t (\S+) sh", machine.transcript()) == [
        window.name
        for wave in ("preload", "infrastructure", "control", "workers", "compute")
        for window in nova.windows(nova.Settings(USE_KSM=False), wave)
    ]
    assert not old.exists()
    said = capsys.readouterr().err
    assert "The cloud is up, " in said
    assert f"  . {folder(machine)}/novarc\n" in said
    assert (nova.STATE / "run/up").exists()


def test_run_detached_alone_installs_what_is_missing(runnable: Machine) -> None:
    assert nova.main(["run_detached", folder(runnable)]) == 0
    calls = " ".join(runnable.called())
    steps = ("make-root", "useradd", "uv --quiet", "tar --extract", "mariadb-install-db", "--sparse=always")
    steps += ("--install --recursive", "build.py", "screen -c", "nft -f")
    assert sorted(steps, key=calls.index) == list(steps)


def test_kvm_is_asked_for_only_where_it_is(runnable: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_TYPE", "kvm")
    assert nova.main(["run_detached", folder(runnable)]) == 2
    assert "apt-get" not in runnable.transcript()


def test_a_kvm_that_is_not_asked_for_is_hidden(runnable: Machine) -> None:
    runnable.put("/dev/kvm")
    cfg = nova.settings_from({}, folder(runnable))
    nova.prepare_folder(cfg, "run")
    nova.make_root(cfg)
    assert "mount --bind /run/nova.py/state/no-kvm /run/nova.py/state/root/dev/kvm\n" in runnable.transcript()
    runnable.calls.unlink()
    nova.private_mounts(nova.replace(cfg, LIBVIRT_TYPE="kvm"))
    assert "/dev/kvm" not in runnable.transcript()


@pytest.mark.parametrize(("mode", "ours"), [(0o775, ["2755"]), (0o1777, [])])
def test_the_folder_of_this_machines_screen_keeps_its_mode_and_ours_fits_it(machine: Machine, mode: int, ours: list[str]) -> None:
    folder, program = machine.path("/run/screen"), machine.put(nova.ROOTFS / "usr/bin/screen")
    folder.mkdir(parents=True)
    folder.chmod(mode)
    program.chmod(0o755)
    (nova.ROOTFS / "run/screen").mkdir(parents=True)
    for name in ("chgrp", "chmod"):
        machine.fake(name)
    machine.fake("mount", machine.mounting())
    for _ in "ab":
        nova.share_screen()
    change = [line for mode in ours for line in ("chgrp utmp /usr/bin/screen", f"chmod {mode} /usr/bin/screen")]
    assert machine.called() == ["mount --bind /run/screen /run/nova.py/state/root/run/screen", *change]
    assert folder.stat().st_mode & 0o7777 == mode


@pytest.mark.parametrize(("lives", "calls"), [(True, []), (False, ["terminate", "clean"])])
def test_run_ends_the_cloud_when_its_session_has_ended(
    cfg: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch, lives: bool, calls: list[str]
) -> None:
    seen: list[str] = []
    for name in ("terminate", "clean"):
        monkeypatch.setattr(nova, name, lambda cfg, name=name: seen.append(name))
    monkeypatch.setattr(nova, "run_detached", lambda cfg, yes: (nova.STATE / "run/up").touch())
    ended = machine.path("/srv/ended")
    end = f'[ "${{!#}}" != -x ] || echo >{ended}'
    machine.fake("screen", SESSION if lives else f"[ -e {ended} ] && {{ {NO_SESSION}; }} || {{ {SESSION}; }}; {end}")
    nova.run(cfg)
    acts = [line for line in machine.called() if line != "screen -ls"]
    assert acts == ["TERM=xterm-256color screen -S 4242.nova -p test -x"]
    assert seen == calls


def test_every_run_begins_empty(cfg: nova.Settings, fake: Fake, machine: Machine) -> None:
    for name in ("cp", "setpriv"):
        fake(name)
    emptied = [name for service in nova.SERVICES.values() for name in (*service.emptied, *service.ended) if "." not in name]
    for name in (*emptied, "images", "state/cache/mysql", "state/log"):
        machine.put(nova.HOME / name / "folder/file")
        machine.put(nova.HOME / name / "file.log")
        machine.put(nova.HOME / name / "nova.log")
    (nova.HOME / "instances/link").symlink_to(nova.HOME / "images")
    nova.empty_databases(cfg)
    here = nova.HOME.resolve()
    left = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()}
    kept = ("images", "state/cache/mysql", "state/log")
    assert left == {f"{name}/{file}" for name in kept for file in ("folder/file", "file.log", "nova.log")}


@pytest.fixture
def new(cfg: nova.Settings, fake: Fake, machine: Machine) -> nova.Settings:
    """A run has just made a new cloud, and kept a copy of it; an instance was not reached in it yet."""
    fake("cp", '/bin/mkdir -p "${@: -1}"; [ ! -d "${@: -2:1}" ] || /bin/cp -r "${@: -2:1}/." "${@: -1}"')
    fake("sync")
    fake("setpriv")
    for name in nova.NEW:
        machine.put(nova.STATE / name / "made", name)
    machine.put(nova.ROOTFS / "etc/resolv.conf", "nameserver 192.0.2.53")
    nova.keep_new()
    return cfg


def test_a_new_cloud_is_copied_by_the_next_run_once_an_instance_was_reached_in_it(new: nova.Settings) -> None:
    assert not nova.is_new_kept(new)
    nova.note_new(new)
    assert nova.is_new_kept(new)
    (nova.STATE / "databases/made").write_text("what a user did since")
    nova.empty_databases(new, copied=True)
    assert [(nova.STATE / name / "made").read_text() for name in nova.NEW] == list(nova.NEW)


def test_half_a_copy_never_counts(new: nova.Settings, machine: Machine) -> None:
    machine.fake("cp", '/bin/mkdir -p "${@: -1}"; exit 1')
    nova.forgiven(nova.keep_new)
    nova.note_new(new)
    assert not nova.is_new_kept(new)


@pytest.mark.parametrize("what", ["setting", "name servers", "image", "template"])
def test_a_copy_is_that_of_the_same_cloud(
    new: nova.Settings, machine: Machine, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = machine.put("/srv/image", "one")
    cfg = nova.replace(new, IMAGE="http://192.0.2.1/image")
    monkeypatch.setattr(nova, "image_file", lambda cfg: image)
    nova.note_new(cfg)
    assert nova.is_new_kept(cfg)
    if what == "setting":
        cfg = nova.replace(cfg, FIXED_RANGE="10.1.0.0/24")
    elif what == "name servers":
        machine.put(nova.ROOTFS / "etc/resolv.conf", "nameserver 192.0.2.54")
    elif what == "image":
        image.write_text("another")
    else:
        edited = nova.replace(nova.SERVICES["neutron"], files={str(machine.put("/srv/edited")): ("", 0, "")})
        monkeypatch.setitem(nova.SERVICES, "neutron", edited)
    assert not nova.is_new_kept(cfg)


@pytest.mark.parametrize("chosen", [{"USE_MYSQL": False}, {"USE_LDAP": True}])
def test_what_cannot_be_held_or_may_change_is_not_copied(new: nova.Settings, chosen: dict[str, Any]) -> None:
    cfg = nova.replace(new, **chosen)
    nova.note_new(cfg)
    assert not nova.is_new_kept(cfg)


@pytest.mark.parametrize("shown", [True, False])
def test_the_status_line_can_be_switched_off(
    cfg: nova.Settings, fake: Fake, machine: Machine, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    fake("screen", SESSION)
    monkeypatch.setattr(nova, "answers", lambda place: True)
    nova.start_session(nova.replace(cfg, SCREEN_STATUS=shown))
    assert ("hardstatus" in machine.transcript()) == shown


def test_a_window_is_its_service_and_then_a_shell(cfg: nova.Settings, fake: Fake, machine: Machine) -> None:
    fake("screen", SESSION)
    died = machine.put(nova.STATE / "run/w.died")
    nova.open_windows(cfg, [nova.Window("w", "control", "service", "serve --at $HOST_IP 'two words'")])
    assert machine.called()[1:] == ["screen -S 4242.nova -X eval 'screen -t w sh /run/nova.py/state/run/w.rc'"]
    command = f"keep w {nova.USER} serve --at 192.0.2.10 'two words'"
    lines = (nova.STATE / "run/w.rc").read_text().splitlines()
    waits = f"*) trap : INT QUIT; {command}; exec bash --rcfile {nova.STATE}/run/w.rc -i ;;"
    assert lines == [f". {nova.CONF}/window", "case $- in", f"*i*) history -s {nova.shlex.quote(command)} ;;", waits, "esac"]
    assert not died.exists()


@pytest.mark.parametrize("datapath", ["kernel", "userspace"])
def test_bridges(cfg: nova.Settings, fake: Fake, machine: Machine, expect: Expect, datapath: str) -> None:
    for name in ("ovs-vsctl", "ip", "nft"):
        fake(name)
    fake("modprobe", f"/bin/mkdir -p {machine.path('/sys/module/openvswitch')}" if datapath == "kernel" else "exit 1")
    fake("sysctl", '[ "$1" != -n ] || echo 0')
    nova.create_bridges(cfg)
    expect(f"bridges-{datapath}")
    undo = ["ip link delete group 28272"]
    undo += ["ovs-dpctl del-dp system@ovs-system"] * (datapath == "kernel")
    assert recorded() == [
        "modprobe --remove openvswitch", *undo, "nft delete table ip nova_py", "sysctl -qw net.ipv4.ip_forward=0",
    ]  # fmt: skip


def test_consoles_ports_are_guarded_where_consoles_are_asked_for(cfg: nova.Settings, fake: Fake, machine: Machine) -> None:
    for name in ("ovs-vsctl", "ip", "nft", "modprobe"):
        fake(name)
    fake("sysctl", "echo 1")
    nova.create_bridges(cfg)
    assert "consoles.nft" not in machine.transcript()
    nova.create_bridges(replace(cfg, CONSOLES=True))
    assert machine.called()[-1] == "nft -f /run/nova.py/state/conf/consoles.nft"


def test_forwarding_that_was_on_stays_on(cfg: nova.Settings, fake: Fake, machine: Machine) -> None:
    for name in ("ovs-vsctl", "ip", "nft", "modprobe"):
        fake(name)
    fake("sysctl", "echo 1")
    nova.create_bridges(cfg)
    assert "sysctl -qw" not in machine.transcript() + (nova.STATE / "record").read_text()


def test_what_is_to_be_undone_is_recorded_before_it_is_done(cfg: nova.Settings, fake: Fake) -> None:
    fake("modprobe")
    fake("ovs-vsctl", f"/bin/grep -q group {nova.STATE}/record")  # fails where the record comes later
    fake("ip")
    fake("sysctl", f'case "$*" in -n*) echo 0;; *ip_forward*) /bin/grep -q ip_forward=0 {nova.STATE}/record;; esac')
    fake("nft", f"/bin/grep -q nova_py {nova.STATE}/record")
    nova.create_bridges(cfg)


# ---- The steps that speak with the APIs: what they ask for, not whether it is granted ----


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    admin = MagicMock()
    monkeypatch.setattr(nova, "cloud", MagicMock(return_value=admin))
    return admin


def test_flavors_are_asked_for_as_in_the_table(cfg: nova.Settings, admin: MagicMock) -> None:
    nova.create_flavors(cfg)
    asked = [call.kwargs for call in admin.compute.create_flavor.call_args_list]
    assert [(a["name"], a["id"], a["ram"], a["disk"], a["vcpus"]) for a in asked] == list(nova.FLAVORS)


def test_floating_addresses_leave_out_this_machines_own(cfg: nova.Settings, admin: MagicMock) -> None:
    nova.create_networks(cfg)
    public, private = [call.kwargs for call in admin.network.create_subnet.call_args_list]
    assert (public["cidr"], public["gateway_ip"], public["is_dhcp_enabled"]) == ("10.6.0.0/27", "10.6.0.1", False)
    assert public["allocation_pools"] == [{"start": "10.6.0.2", "end": "10.6.0.30"}]
    assert (private["cidr"], private["is_dhcp_enabled"]) == ("10.0.0.0/24", True)


def test_the_image_names_its_kernel_and_ramdisk_by_id(cfg: nova.Settings, admin: MagicMock, machine: Machine) -> None:
    for part in nova.IMAGES["ami-tty"]["part"]:
        machine.put(nova.HOME / "images" / part["file"])
    admin.image.create_image.side_effect = lambda name, **_: MagicMock(id=f"id of {name}")
    nova.upload_image(cfg)
    last = admin.image.create_image.call_args
    assert last.kwargs["name"] == "ami-tty"
    assert last.kwargs["kernel_id"] == "id of ami-tty-kernel"
    assert last.kwargs["ramdisk_id"] == "id of ami-tty-ramdisk"
    assert last.kwargs["os_command_line"].startswith("root=LABEL=ami-tty ")


def test_an_instance_that_went_wrong_is_not_waited_for(cfg: nova.Settings, admin: MagicMock) -> None:
    admin.compute.get_server.return_value = MagicMock(status="ERROR", fault={"message": "No valid host"})
    with pytest.raises(nova.Failure, match="No valid host"):
        nova.is_active(cfg, MagicMock())


# ---- attach, shell ----


@pytest.mark.parametrize(("kind", "known"), [("xterm-kitty", "xterm-256color"), ("screen", "screen"), ("", "xterm-256color")])
def test_attach_shows_the_session_on_a_terminal_that_the_clouds_debian_knows(
    made: Machine, fake: Fake, monkeypatch: pytest.MonkeyPatch, kind: str, known: str
) -> None:
    made.put("/home/me/nova/state/root/usr/share/terminfo/s/screen")
    fake("screen", SESSION)
    if kind:
        monkeypatch.setenv("TERM", kind)
    assert nova.main(["attach", folder(made)]) == 0
    assert made.called("enter ")[-1] == f"TERM={known} enter screen -S 4242.nova -p test -x"


def test_what_is_not_up_cannot_be_shown(made: Machine, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake("screen", NO_SESSION)
    assert nova.main(["attach", folder(made)]) == 1
    assert f"the cloud in {folder(made)} is not up" in capsys.readouterr().err


@pytest.fixture
def replaced(made: Machine, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The program, its words and its environment that shell becomes; something is installed, and no cloud is up."""
    seen: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *what: seen.extend(what))
    monkeypatch.setenv("TMPDIR", "/home/me/tmp")
    made.put("/home/me/nova/state/root.made-from")
    made.put("/home/me/nova/state/root/etc/debian_version")
    fake("screen", NO_SESSION)
    return seen


def test_shell_is_one_in_the_clouds_debian(replaced: list[Any], made: Machine) -> None:
    assert nova.main(["shell", folder(made)]) == 0
    program, words, environment = replaced
    assert (program, words[:2]) == ("chroot", ["chroot", str(nova.ROOTFS)])
    assert words[-2:] == [f"exec bash --rcfile {nova.CONF}/test -i", "shell"]
    assert "TMPDIR" not in environment


def test_shell_is_where_a_cloud_that_is_up_has_its_mounts(replaced: list[Any], made: Machine, fake: Fake) -> None:
    fake("screen", SESSION)
    assert nova.main(["shell", folder(made)]) == 0
    assert replaced[0] == "nsenter" and "--target=4242" in replaced[1] and "chroot" not in replaced[1]


def test_shell_carries_out_a_command_as_it_is_written(replaced: list[Any], made: Machine) -> None:
    asked = ["openstack", "server list", "--json", "-v", "$HOME"]
    assert nova.main(["shell", folder(made), *asked]) == 0
    line, name, *words = replaced[1][-len(asked) - 2 :]
    assert line.endswith('; exec "$@"') and (name, words) == ("shell", asked)


def test_shell_before_install(replaced: list[Any], made: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    made.path("/home/me/nova/state/root.made-from").unlink()
    assert nova.main(["shell", folder(made)]) == 1
    assert replaced == [] and "nothing is installed in" in capsys.readouterr().err


def test_of_shell_a_first_word_without_a_cloud_is_the_command(made: Machine) -> None:
    assert nova.understood(["shell", "openstack", "--help"]) == ("shell", [], ["openstack", "--help"])
    assert nova.understood(["-v", "shell", folder(made), "ls"]) == ("shell", [folder(made)], ["ls"])
    assert nova.understood(["shell"]) == ("shell", [], [])


# ---- terminate ----


@pytest.fixture
def made(machine: Machine, fake: Fake) -> Machine:
    """A machine with a folder in which a cloud was made; nothing runs."""
    (machine.path("/home/me/nova") / "state/run").mkdir(parents=True)
    machine.put("/home/me/nova/state/log/nova.log")
    fake("mount", machine.mounting())
    fake("screen", NO_SESSION)
    return machine


INSTANCES = '[ "$1" = list ] && printf "instance-1\\ninstance-2\\n\\n"; [ "$*" != "destroy instance-1" ]'


@pytest.mark.parametrize("libvirt", [True, False])
def test_terminate_without_a_cloud_asks_no_api(
    made: Machine, fake: Fake, expect: Expect, monkeypatch: pytest.MonkeyPatch, libvirt: bool
) -> None:
    asked = []
    monkeypatch.setattr(nova, "answers", lambda place: asked.append(place) or libvirt)
    fake("virsh", INSTANCES)
    assert nova.main(["terminate", folder(made)]) == 0
    expect("terminate" if libvirt else "terminate-nothing")
    assert asked == [f"{nova.ROOTFS}/run/libvirt/libvirt-sock"]  # the API that listens may be another cloud's


@pytest.fixture
def of_ours(machine: Machine, process: Any) -> int:
    """A process of this cloud."""
    pid: int = process()
    machine.has_cloud("self")
    machine.has_cloud(pid)
    return pid


@pytest.mark.usefixtures("of_ours")
def test_terminate_falls_back_to_libvirt(
    cfg: nova.Settings, admin: MagicMock, machine: Machine, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(nova, "answers", lambda place: True)
    admin.compute.servers.side_effect = ValueError("HTTP 503")
    machine.fake("virsh", INSTANCES)
    nova.terminate(cfg)
    assert machine.called()[1:4:2] == ["virsh destroy instance-1", "virsh destroy instance-2"]
    assert "The APIs did not end them (ValueError: HTTP 503); so libvirt does.\n" in capsys.readouterr().err


def test_terminate_through_the_api_waits_until_they_are_gone(
    cfg: nova.Settings, of_ours: int, admin: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nova, "answers", lambda place: place.startswith(f"http://{cfg.HOST_IP}:8774"))
    monkeypatch.setattr(nova, "destroy_domains", lambda: None)
    one, two, address = (SimpleNamespace(id=name) for name in ("one", "two", "10.6.0.2"))
    looks = iter([[one, two], [two], []])
    admin.compute.servers.side_effect = lambda all_projects: next(looks)
    admin.network.ips.return_value = [address]
    nova.terminate(cfg)
    assert admin.compute.delete_server.call_args_list == [call(one, force=True), call(two, force=True)]
    assert next(looks, "all looked") == "all looked"
    admin.network.delete_ip.assert_called_once_with(address)


def test_taking_down_does_not_depend_on_how_the_machine_looks_by_now(cfg: nova.Settings, machine: Machine) -> None:
    chosen = nova.replace(cfg, SCREEN_NAME="mine", FLOATING_RANGE="10.7.0.0/28", SCREEN_STATUS=False)
    nova.make_folders(chosen)
    machine.addresses, machine.gateway = {"lo": "127.0.0.1"}, ""
    assert nova.settings_of_run(str(cfg.DIR)) == nova.replace(chosen, MYSQL_PASS="", ADMIN_PASSWORD="")


def test_a_setting_that_this_nova_py_does_not_know_stops_nothing(made: Machine) -> None:
    made.put("/home/me/nova/state/settings.json", json.dumps({"SCREEN_NAME": "mine", "USE_SOMETHING": True}))
    assert nova.main(["clean", folder(made)]) == 0
    assert nova.settings_of_run(folder(made)).SCREEN_NAME == "mine"


# ---- clean ----


@pytest.fixture
def process(real: Callable[[str], str]) -> Iterator[Callable[..., int]]:
    """Start a process of the real machine that would sleep for a minute; its number."""
    started = []

    def start(*trap: str) -> int:
        sleep = [real("sleep"), "60"]
        ignoring = [real("bash"), "-c", f"trap '' TERM; echo ready; exec {sleep[0]} 60"]
        started.append(subprocess.Popen(ignoring if trap else sleep, stdout=subprocess.PIPE))
        if trap:
            assert started[-1].stdout
            started[-1].stdout.readline()
        return started[-1].pid

    yield start
    for one in started:
        one.kill()
        one.communicate()


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_clean(made: Machine, expect: Expect) -> None:
    made.put("/home/me/nova/state/run/up")
    assert nova.main(["clean", folder(made)]) == 0
    expect("clean")
    assert list((nova.STATE / "run").iterdir()) == []


def test_clean_ends_the_processes_of_this_cloud_only(cfg: nova.Settings, machine: Machine, fake: Fake, process: Any) -> None:
    ours, anothers, strangers = process(), process(), process()
    machine.has_cloud("self")
    machine.has_cloud(ours)
    machine.has_cloud(anothers, "/home/you/nova")
    machine.put(f"/proc/{strangers}/mountinfo")
    fake("screen", NO_SESSION)
    nova.clean(cfg)
    assert [lives(pid) for pid in (ours, anothers, strangers)] == [False, True, True]


def test_a_process_that_ended_by_itself_meanwhile_stops_nobody(
    cfg: nova.Settings, fake: Fake, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = psutil.Process(process())
    ended.kill()
    ended.wait()
    monkeypatch.setattr(nova, "processes", lambda: [ended])
    fake("screen", NO_SESSION)
    nova.take_down(cfg)


def test_whoever_does_not_end_when_asked_is_ended(process: Any) -> None:
    stubborn = process("TERM")
    nova.end_processes([psutil.Process(stubborn)], 0.2)
    assert not lives(stubborn)


def test_openstack_ends_before_what_it_stands_on(
    cfg: nova.Settings, machine: Machine, fake: Fake, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = {"mysql": process(), "api": process(), "compute": process()}
    machine.has_cloud("self")
    for window, pid in windows.items():
        machine.has_cloud(pid)
        machine.put(nova.STATE / f"run/{window}.pid", f"{pid}\n")
    ended, end = [], nova.end_processes
    monkeypatch.setattr(nova, "end_processes", lambda those, s: (ended.append({p.pid for p in those}), end(those, s)))
    fake("screen", NO_SESSION)
    nova.take_down(cfg)
    assert [those for those in ended if those][:2] == [{windows["api"], windows["compute"]}, {windows["mysql"]}]


@pytest.fixture
def session(machine: Machine, process: Any) -> Callable[[str], None]:
    """session(folder): there is a screen session, of the cloud in that folder; "": of no cloud."""

    def start(folder: str) -> None:
        pid = process()
        machine.has_cloud("self")
        machine.has_cloud(pid, folder) if folder else machine.put(f"/proc/{pid}/mountinfo")
        machine.fake("screen", SESSION.replace("4242", str(pid)))

    return start


@pytest.mark.parametrize(("folder", "quit"), [("/home/me/nova", True), ("/home/you/nova", False)])
def test_clean_ends_the_session_when_it_is_ours(
    session: Any, cfg: nova.Settings, machine: Machine, folder: str, quit: bool
) -> None:
    session(folder)
    nova.take_down(cfg)
    asked = [line for line in machine.called() if line != "screen -ls"]
    assert bool(asked) == quit
    assert all(re.fullmatch(r"screen -S \d+\.nova -X quit", line) for line in asked)


def test_a_session_with_a_longer_name_is_not_ours(cfg: nova.Settings, of_ours: int, machine: Machine) -> None:
    machine.fake("screen", SESSION.replace("4242.nova", f"{of_ours}.nova2"))
    nova.take_down(cfg)
    assert set(machine.called()) == {"screen -ls"}


@pytest.mark.parametrize("others", ["12.nova2", "12.my.nova", "12.nova-b"])
def test_a_session_is_addressed_so_that_no_other_could_be_meant(cfg: nova.Settings, machine: Machine, others: str) -> None:
    machine.fake("screen", SESSION.replace("\\t4242", f"\\t{others}\\t(Detached)\\n\\t4242"))
    nova.to_screen(cfg, "select", "test")
    assert machine.called() == ["screen -ls", "screen -S 4242.nova -X select test"]


# ---- scrub ----


@pytest.fixture
def traces(made: Machine, fake: Fake) -> Machine:
    """A machine on which a cloud left its record, two taps and a domain; the other devices are somebody else's."""
    lines = ("ip link delete br-ex", "sysctl -qw net.ipv4.ip_forward=0", "nft delete table ip nova_py")
    made.put("/home/me/nova/state/record", "".join(f"{line}  # {nova.checksum(line, nova.boot())}\n" for line in lines))
    made.put("/home/me/nova/state/root/etc/libvirt/qemu/instance-1.xml")
    for name, address, tap in (
        ("tap1", "fa:6e:70:00:00:01", True), ("tap2", "fe:16:3e:00:00:01", True), ("br0", "fa:6e:70:00:00:02", False),
        ("tap3", "fe:6e:70:00:00:03", True), ("vnet1", "fe:6e:70:00:00:04", True),
    ):  # fmt: skip
        made.put(f"/sys/class/net/{name}/address", f"{address}\n")
        if tap:
            made.put(f"/sys/class/net/{name}/tun_flags", "0x1002\n")
    for name in ("ip", "sysctl"):
        fake(name)
    fake("nft", "echo no such table; exit 1")
    return made


def test_scrub(traces: Machine, expect: Expect) -> None:
    assert nova.main(["scrub", folder(traces)]) == 0
    expect("scrub")
    assert not (nova.STATE / "record").exists()
    assert list(nova.DOMAINS.glob("qemu/*")) == []


def test_scrub_twice(traces: Machine) -> None:
    nova.main(["scrub", folder(traces)])
    traces.calls.unlink()
    assert nova.main(["scrub", folder(traces)]) == 0
    assert "nft" not in traces.transcript()


def test_the_record_is_undone_last_first_and_a_failure_does_not_stop_it(cfg: nova.Settings, fake: Fake, machine: Machine) -> None:
    fake("one")
    fake("two", "exit 1")
    fake("three")
    for line in (("one", "1"), ("two", "two words"), ("three",)):
        nova.record(*line)
    nova.undo_recorded()
    assert machine.called() == ["three", "two 'two words'", "one 1"]
    assert recorded() == []


def test_a_line_of_the_record_that_was_cut_off_stops_nothing(traces: Machine) -> None:
    record = traces.path("/home/me/nova/state/record")
    record.write_text(record.read_text() + "ip link delete 'br-i")
    assert nova.main(["scrub", folder(traces)]) == 0
    assert traces.called()[-3:] == ["ip link delete br-ex", "ip link delete tap1", "ip link delete tap3"]
    assert not record.exists()


def test_an_undoing_that_is_cut_off_goes_on_where_it_was(
    cfg: nova.Settings, fake: Fake, machine: Machine, monkeypatch: Any
) -> None:
    fake("one")
    fake("two")
    nova.record("one")
    nova.record("two")
    tried = nova.forgiven
    monkeypatch.setattr(nova, "forgiven", lambda *words: tried(*words) if words[-1] == "two" else interrupt())
    with pytest.raises(KeyboardInterrupt):
        nova.undo_recorded()
    assert recorded() == ["one"]


def interrupt() -> None:
    raise KeyboardInterrupt


# ---- What was there before ----


def test_a_run_that_was_cut_off_is_taken_down_first(cfg: nova.Settings, machine: Machine, fake: Fake) -> None:
    fake("screen", NO_SESSION)
    fake("ip")
    nova.end_what_was_left(cfg)
    assert machine.transcript() == ""
    nova.record("ip", "link", "delete", "br-ex")
    nova.end_what_was_left(cfg)
    assert machine.called()[-1] == "ip link delete br-ex"


def test_a_cloud_that_is_up_is_in_the_way(session: Any, cfg: nova.Settings) -> None:
    session("/home/me/nova")
    nova.make_folders(cfg)
    (nova.STATE / "run/up").touch()
    for name in ("nova", "another"):  # the one folder has one cloud, whatever its session is named
        with pytest.raises(nova.Failure) as caught:
            nova.refuse_if_running(nova.replace(cfg, SCREEN_NAME=name))
        assert str(caught.value) == "screen named 'nova' already exists!"
        assert caught.value.hint.splitlines() == [
            "attach to it with: sudo python3 nova.py attach",
            "  end it with: sudo python3 nova.py stop, which keeps it; or terminate, then clean",
        ]


def test_a_cloud_that_is_half_made_is_not_in_the_way(session: Any, cfg: nova.Settings) -> None:
    session("/home/me/nova")
    nova.refuse_if_running(cfg)


def test_a_cloud_that_was_up_before_the_machine_was_started_is_not_in_the_way(cfg: nova.Settings, fake: Fake) -> None:
    fake("screen", NO_SESSION)
    (nova.STATE / "run/up").touch()
    nova.refuse_if_running(cfg)


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize(("folder", "whose"), [("/home/you/nova", "/home/you/nova"), ("", "another program")])
def test_a_session_of_our_name_that_is_not_ours_is_named(
    session: Any, cfg: nova.Settings, up: bool, folder: str, whose: str
) -> None:
    session(folder)
    if up:
        (nova.STATE / "run/up").touch()
    with pytest.raises(nova.Failure) as caught:
        nova.refuse_if_running(cfg)
    assert str(caught.value) == f"screen named 'nova' already exists, of {whose}!"
    assert caught.value.hint == "choose another SCREEN_NAME, or end that one"


def test_clean_forgets_a_session_that_was_killed_and_no_other(made: Machine) -> None:
    listed = shlex.join(("41.nova", "42.nova-2"))
    says = f'echo "There are screens on:"; printf "\\t%s\\t(Dead ???)\\n" {listed}; exit 1'
    made.fake("screen", f'if [ "$1" = -ls ]; then {says}; fi')
    assert nova.main(["clean", folder(made)]) == 0
    assert [line for line in made.called() if "-wipe" in line] == ["screen -wipe 41.nova"]


@pytest.mark.parametrize(
    ("name", "listed", "found"),
    [("nova", "nova", 77), ("nova", "nova2", 0), ("nova", "my.nova", 0), ("a-b_1", "a-b_1", 77)],
)
def test_a_session_is_known_by_its_whole_name(cfg: nova.Settings, fake: Fake, name: str, listed: str, found: int) -> None:
    fake("screen", f'printf "There is a screen on:\\n\\t77.{listed}\\t(11/21/26 21:56:11)\\t(Attached)\\n1 Socket.\\n"')
    assert nova.session(nova.replace(cfg, SCREEN_NAME=name)) == found


def test_a_session_that_is_dead_is_in_nobodys_way(cfg: nova.Settings, fake: Fake) -> None:
    listing = "There are screens on:\\n\\t76.nova\\t(11/21/26 21:56:11)\\t(Dead ???)\\n\\t{}\\t(Detached)\\n"
    fake("screen", f'printf "{listing.format("77.another")}"')
    assert nova.session(cfg) == 0
    nova.refuse_if_running(cfg)
    fake("screen", f'printf "{listing.format("77.nova")}"')
    assert nova.session(cfg) == 77
