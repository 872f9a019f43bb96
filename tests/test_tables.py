# SPDX-License-Identifier: Apache-2.0
"""nova.py's tables, services.toml and uv.lock are sound and fit together."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

import nova

from .test_fetch_release import program

HERE = nova.HERE
LOCK = tomllib.loads((HERE / "uv.lock").read_text())
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())
SERVICES = nova.SERVICES
WINDOWS = list(nova.WINDOWS.values())
FILES = [(name, *row) for service in SERVICES.values() for name, row in service.files.items()]
FOLDERS = [row for service in SERVICES.values() for row in service.folders.items()]
FILL = [command for service in SERVICES.values() for command in service.fill]
DATABASES = [name for service in SERVICES.values() for name in service.databases]
GROUPS = [service.group for service in SERVICES.values() if service.group]
BIND = r"^(?:bind_ip|ec2api_listen) = (\S+)\n(?:bind|ec2api_listen)_port = (\d+)$"


@pytest.fixture
def made(cfg: nova.Settings) -> nova.Settings:
    """Settings of a cloud whose passwords are there."""
    nova.make_folders(cfg)
    return cfg


# ---- Services ----


def test_windows_are_named_once_shortly_and_as_files_can_be() -> None:
    names = [window.name for service in SERVICES.values() for window in service.windows]
    assert len(set(names)) == len(names)
    assert [n for n in names if not re.fullmatch(r"[a-z][a-z0-9-]{0,13}", n)] == []


def test_no_window_is_named_as_the_window_for_trying() -> None:
    assert "test" not in nova.WINDOWS


@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: w.name)
def test_a_window_is_a_command_of_a_known_user_in_a_known_wave(window: nova.Window, made: nova.Settings) -> None:
    words = shlex.split(nova.render(window.command, made))
    assert window.user in nova.USERS
    assert window.wave in ("preload", "infrastructure", *nova.OPENSTACK, "last")
    assert window.preload in ("", "any", "net", "nova")
    assert [w for w in words if "$" in w] == []
    assert re.fullmatch(r"(/usr/lib/\S+/)?[a-z][a-z-]+", words[0])


@pytest.mark.parametrize("window", [w for w in WINDOWS if w.ready], ids=lambda w: w.name)
def test_what_answers_is_a_url_a_port_a_socket_or_a_queue(window: nova.Window, made: nova.Settings) -> None:
    place = nova.render(window.ready, made)
    assert re.fullmatch(r"http://[\d.]+:\d+/\S*|[\d.]+:\d+|/\S+|amqp:\S+", place)
    if place.startswith("http"):  # it is asked where it listens: its command says so, or the file that it names
        files = [HERE / name for name, path, *_ in FILES if path in window.command.split()]
        bound = [":".join(both) for file in files for both in re.findall(BIND, nova.render(file.read_text(), made), re.M)]
        assert place.split("/")[2] in shlex.split(nova.render(window.command, made)) + bound


def test_no_port_is_used_twice(made: nova.Settings) -> None:
    own = [str(v) for k, v in nova.PATHS.items() if k.endswith("_PORT")]
    listens = [m for w in WINDOWS for m in re.findall(r" [\d.]+:(\d+) ", nova.render(w.command, made))]
    assert len(listens) >= 6
    assert sorted({*own, *listens}) == sorted(own + listens)


def test_every_api_of_the_catalog_is_a_window(made: nova.Settings) -> None:
    listens = {w.ready.split("/")[2] for w in WINDOWS if w.ready.startswith("http")}
    assert {service.endpoint[1].split("/")[2] for service in SERVICES.values() if service.endpoint[0]} < listens


def test_keystone_answers_where_clients_are_sent() -> None:
    assert nova.WINDOWS["keystone"].ready == "http://$HOST_IP:5000/v3"


def test_what_a_service_has_is_asked_for_by_a_setting(cfg: nova.Settings) -> None:
    assert [nova.asked_for(cfg, each.asked_for_by) for each in SERVICES.values() if each.asked_for_by].count(True) <= 1  # KSM


def test_every_service_says_why_and_has_something() -> None:
    assert [name for name, each in SERVICES.items() if len(each.why) < 5] == []
    assert [name for name, each in SERVICES.items() if each == nova.Service(each.why, each.asked_for_by)] == []


def test_packages_have_a_name_a_reason_and_one_place() -> None:
    names = [name for service in SERVICES.values() for name in service.packages]
    assert len(set(names)) == len(names)
    assert [n for n in names if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", n)] == []
    assert [why for service in SERVICES.values() for why in service.packages.values() if len(why) < 5] == []


# ---- Databases, flavors, accounts, images ----


@pytest.mark.parametrize("command", FILL)
def test_a_database_command_renders(command: str, made: nova.Settings) -> None:
    words = shlex.split(nova.render(command, made))
    assert words[2 if words[0] == f"{nova.CONF}/fork" else 0].endswith(("-manage", "/map-host"))
    assert [w for w in words if "$" in w] == []


def test_no_database_is_made_twice_and_each_is_named_in_a_template() -> None:
    assert len(set(DATABASES)) == len(DATABASES)
    texts = "".join((HERE / name).read_text() for name, *_ in FILES) + str(FILL)
    ways = ("@localhost/NAME?", "$DATABASE/NAME?$QUERY", "$CELL/NAME?{query}")
    assert [name for name in DATABASES if not any(way.replace("NAME", name) in texts for way in ways)] == []


def test_flavors_are_those_of_nova_sh_and_then_those_that_clients_expect() -> None:
    names = [row[0] for row in nova.FLAVORS]
    assert names[:5] == ["m1.tiny", "m1.small", "m1.medium", "m1.large", "m1.xlarge"]
    assert {"m1.nano", "m1.micro", "cirros256", "ds1G"} <= {*names[5:]}
    assert [row[1] for row in nova.FLAVORS[:5]] == ["1", "2", "3", "4", "5"]
    for rows in (nova.FLAVORS[:5], nova.FLAVORS[5:]):
        sizes = [row[2:] for row in rows]
        assert sizes == sorted(sizes)


def test_accounts_have_roles_of_keystone_and_projects_of_their_own() -> None:
    assert {role for _, _, role in nova.ACCOUNTS} <= {"admin", "member", "reader"}
    assert {place for _, place, _ in nova.ACCOUNTS} == {"demo", "alt_demo", "system"}
    assert {("demo", "demo", "member"), ("alt_demo", "alt_demo", "member")} <= {*nova.ACCOUNTS}


def test_an_image_names_only_parts_that_stand_above_it() -> None:
    above: set[str] = set()
    for part in [part for image in nova.IMAGES.values() for part in image["part"]]:
        assert part["format"] in ("aki", "ari", "ami", "qcow2")
        assert {v for k, v in part.get("properties", {}).items() if k.endswith("_id")} <= above
        above.add(part["name"])


# ---- Folders and files ----


def test_every_template_is_of_a_service_and_there() -> None:
    files = {str(p.relative_to(HERE)) for p in [*HERE.glob("*.tmpl"), *HERE.glob("conf/*.tmpl")]}
    assert all((HERE / name).is_file() for name, *_ in FILES)
    elsewhere = set(re.findall(r'HERE / "(conf/\S+\.tmpl)"', (HERE / "nova.py").read_text()))
    assert {*(name for name, *_ in FILES if name.endswith(".tmpl")), *elsewhere} == files


def test_no_file_is_written_twice_and_owners_are_known() -> None:
    paths = [path for _, path, *_ in FILES]
    assert len(set(paths)) == len(paths)
    assert {owner for *_, owner in FILES} <= {*nova.USERS}


def test_folders_are_named_once_below_dir_and_owners_are_known() -> None:
    names = [name for name, _ in FOLDERS]
    assert len(set(names)) == len(names)
    assert [n for n in names if Path(n).is_absolute() or ".." in n] == []
    assert {owner for _, owner in FOLDERS} <= {*nova.USERS}


def test_what_nova_py_keeps_beside_the_tree_is_known(cfg: nova.Settings) -> None:
    tops = {Path(name).parts[0] for name, _ in FOLDERS}
    tops |= {Path(path).parts[1] for _, path, *_ in FILES if path.startswith("$HOME/")}
    assert tops == nova.OWN


REASONS = [word for row in nova.IMPOSSIBLE for word in row[:2] if word] + [row[0] for row in nova.NEEDED]


@pytest.mark.parametrize("name", [*nova.CHOICES, *{word.partition("=")[0] for word in REASONS}])
def test_choices_and_refusals_are_of_settings(name: str) -> None:
    assert name in nova.Settings.__dataclass_fields__


def test_what_is_refused_is_a_choice() -> None:
    named = [word.split("=") for word in REASONS if "=" in word]
    assert [name for name, value in named if value not in nova.CHOICES.get(name, (value,))] == []


def test_the_default_is_not_refused(made: nova.Settings) -> None:
    assert [row for row in nova.IMPOSSIBLE if nova.asked_for(made, row[0])] == []
    assert [row for row in nova.NEEDED if nova.asked_for(made, row[0])] == []


# ---- uv.lock ----


def locked_requirements() -> dict[str, list[dict[str, Any]]]:
    ours = next(p for p in LOCK["package"] if p["name"] == PROJECT["project"]["name"])
    groups: dict[str, list[dict[str, Any]]] = ours["metadata"]["requires-dev"]
    return groups


def flat(group: str) -> list[str]:
    """A group of pyproject.toml with the groups that it includes."""
    rows = PROJECT["dependency-groups"][group]
    return [word for row in rows for word in (flat(row["include-group"]) if isinstance(row, dict) else [row])]


@pytest.mark.parametrize("group", ["tool", "cloud", "cloud-build", "tests", "client", *GROUPS])
def test_the_lock_is_in_step_with_pyproject(group: str) -> None:
    locked = {row["name"] + row.get("specifier", "") for row in locked_requirements()[group]}
    assert locked == {re.sub(r"[._](?=[a-z])", "-", word.lower().replace(" ", "")) for word in flat(group)}


def test_the_lock_is_for_the_pythons_that_pyproject_names() -> None:
    assert LOCK["requires-python"] == PROJECT["project"]["requires-python"]


def test_every_file_in_the_lock_has_a_hash_and_comes_from_pypi() -> None:
    files = [f for p in LOCK["package"] for f in [*p.get("wheels", ()), *([p["sdist"]] if "sdist" in p else [])]]
    assert len(files) > 100
    assert [f["url"] for f in files if not re.fullmatch(r"sha256:[0-9a-f]{64}", f.get("hash", ""))] == []
    assert [f["url"] for f in files if not f["url"].startswith("https://files.pythonhosted.org/")] == []


@pytest.mark.parametrize("machine_type", ["x86_64", "aarch64"])
def test_the_bootstraps_uv_is_in_the_lock(machine_type: str) -> None:
    url, _ = program.locked("uv", rf"linux\S*_{machine_type}\.whl$")  # as libexec/make-tool asks for it
    assert re.search(rf"/uv-[\d.]+-py3-none-manylinux\S+_{machine_type}\.whl$", url)


def test_branchs_nova_is_in_the_lock() -> None:
    version = next(row["specifier"] for row in locked_requirements()["cloud"] if row["name"] == "nova")
    assert program.locked("nova", r"\.tar\.gz$")[0].endswith(f"/nova-{version.removeprefix('==')}.tar.gz")
