# SPDX-License-Identifier: Apache-2.0
"""nova.py's tables, packages.toml and uv.lock are sound and fit together."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

import nova

from .conftest import Machine

HERE = nova.HERE
LOCK = tomllib.loads((HERE / "uv.lock").read_text())
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())
PACKAGES = tomllib.loads((HERE / "conf/packages.toml").read_text())
SERVICES = list(nova.SERVICES.values())
BIND = r"^(?:bind_ip|ec2api_listen) = (\S+)\n(?:bind|ec2api_listen)_port = (\d+)$"
USERS = {nova.USER, nova.PRIVSEP, nova.DISKS, nova.GUEST_USER, nova.ROOT}


@pytest.fixture
def made(cfg: nova.Settings) -> nova.Settings:
    """Settings of a cloud whose passwords are there."""
    nova.make_folders(cfg)
    return cfg


# ---- Services ----


def test_windows_are_named_once_shortly_and_as_files_can_be() -> None:
    names = [s.window for s in SERVICES]
    assert len(set(names)) == len(names)
    assert [n for n in names if not re.fullmatch(r"[a-z][a-z0-9-]{0,13}", n)] == []


def test_no_window_is_named_as_the_window_for_trying() -> None:
    assert "test" not in {s.window for s in SERVICES}


@pytest.mark.parametrize("service", SERVICES, ids=lambda s: s.window)
def test_a_service_is_a_command_of_a_known_user(service: nova.Service, made: nova.Settings) -> None:
    words = shlex.split(nova.render(service.command, made))
    assert service.user in USERS
    assert [w for w in words if "$" in w] == []
    assert re.fullmatch(r"(/usr/lib/\S+/)?[a-z][a-z-]+", words[0])


@pytest.mark.parametrize("service", [s for s in SERVICES if s.answers], ids=lambda s: s.window)
def test_what_answers_is_a_url_a_port_a_socket_or_a_queue(service: nova.Service, made: nova.Settings) -> None:
    place = nova.render(service.answers, made)
    assert re.fullmatch(r"http://[\d.]+:\d+/\S*|[\d.]+:\d+|/\S+|amqp:\S+", place)
    if place.startswith("http"):  # it is asked where it listens: its command says so, or the file that it names
        files = [HERE / row[0] for row in nova.CONFIG_FILES if f"$CONF/{row[1].name}" in service.command.split()]
        bound = [":".join(both) for file in files for both in re.findall(BIND, nova.render(file.read_text(), made), re.M)]
        assert place.split("/")[2] in shlex.split(nova.render(service.command, made)) + bound


def test_no_port_is_used_twice(made: nova.Settings) -> None:
    own = [str(v) for k, v in nova.PATHS.items() if k.endswith("_PORT")]
    listens = [m for s in SERVICES for m in re.findall(r" [\d.]+:(\d+) ", nova.render(s.command, made))]
    assert len(listens) >= 6
    assert sorted({*own, *listens}) == sorted(own + listens)


def test_every_api_of_the_catalog_is_a_service(made: nova.Settings) -> None:
    listens = {s.answers.split("/")[2] for s in SERVICES if s.answers.startswith("http")}
    assert {url.split("/")[2] for _, _, url in nova.ENDPOINTS} < listens


def test_keystone_answers_where_clients_are_sent() -> None:
    assert nova.SERVICES["keystone"].answers == "http://$HOST_IP:5000/v3"


def test_the_services_are_in_the_order_in_which_they_are_started() -> None:
    assert tuple(SERVICES) == nova.PRELOAD + nova.SERVERS + nova.OPENSTACK + nova.MERGER


# ---- Databases, endpoints, flavors, images ----


@pytest.mark.parametrize("command", [c for _, commands in nova.DATABASES for c in commands])
def test_a_database_command_renders(command: str, made: nova.Settings) -> None:
    words = shlex.split(nova.render(command, made))
    assert words[2 if words[0] == f"{nova.CONF}/fork" else 0].endswith(("-manage", "/map-host"))
    assert [w for w in words if "$" in w] == []


def test_no_database_is_made_twice_and_each_is_named_in_a_template() -> None:
    names = [name for names, _ in nova.DATABASES for name in names]
    assert len(set(names)) == len(names)
    texts = "".join((HERE / row[0]).read_text() for row in nova.CONFIG_FILES) + str(nova.DATABASES)
    ways = ("@localhost/NAME?", "$DATABASE/NAME?$QUERY", "$CELL/NAME?{query}")
    assert [name for name in names if not any(way.replace("NAME", name) in texts for way in ways)] == []


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
    for name, form, _, properties in nova.IMAGE_PARTS:
        assert form in ("aki", "ari", "ami", "qcow2")
        assert {v for k, v in properties.items() if k.endswith("_id")} <= above
        above.add(name)


# ---- Folders and files ----


def test_every_template_is_in_the_table_and_there() -> None:
    files = {str(p.relative_to(HERE)) for p in [*HERE.glob("*.tmpl"), *HERE.glob("conf/*.tmpl")]}
    rows = [row[0] for row in nova.CONFIG_FILES if row[0].endswith(".tmpl")]
    assert all((HERE / row[0]).is_file() for row in nova.CONFIG_FILES)
    elsewhere = set(re.findall(r'HERE / "(conf/\S+\.tmpl)"', (HERE / "nova.py").read_text()))
    assert {*rows, *elsewhere} == files


def test_no_file_is_written_twice_and_owners_are_known() -> None:
    paths = [path for _, path, _, _ in nova.CONFIG_FILES]
    assert len(set(paths)) == len(paths)
    assert {owner for _, _, _, owner in nova.CONFIG_FILES} <= USERS | {"caller"}


def test_folders_are_named_once_below_dir_and_owners_are_known() -> None:
    names = [name for name, _ in nova.FOLDERS]
    assert len(set(names)) == len(names)
    assert [n for n in names if Path(n).is_absolute() or ".." in n] == []
    assert {owner for _, owner in nova.FOLDERS} <= USERS


def test_libvirts_folders_are_private_ones_of_the_cloud() -> None:
    assert all(own.startswith("state/") for _, own in nova.PRIVATE_FOLDERS)
    machines = {str(machine) for machine, _ in nova.PRIVATE_FOLDERS}
    written = [row[1] for row in nova.CONFIG_FILES if not row[1].is_relative_to(nova.HOME)]
    assert all(machines & {str(folder) for folder in path.parents} for path in written)


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


# ---- packages.toml ----


def test_packages_are_known_for_the_distributions_promised() -> None:
    assert set(PACKAGES) == {"packages", "only_with", "sources", "distributions"}
    assert set(PACKAGES["sources"]) <= {kind for _, kind in nova.SOURCES}
    assert set(PACKAGES["only_with"]) <= set(nova.ONLY_WITH)
    assert all(set(row.get("more", ())) <= set(nova.ONLY_WITH) for row in PACKAGES["distributions"].values())
    assert set(PACKAGES["distributions"]) == {"debian-12", "debian-13", "ubuntu-24.04"}


def test_packages_have_a_name_and_a_reason() -> None:
    tables = [PACKAGES["packages"], *PACKAGES["only_with"].values(), *PACKAGES["sources"].values()]
    for table in tables:
        assert [n for n in table if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", n)] == []
        assert [n for n, why in table.items() if len(why) < 5] == []
    assert all(not set(table) & set(PACKAGES["packages"]) for table in tables[1:])


@pytest.mark.parametrize("name", PACKAGES["distributions"])
def test_a_distribution_has_a_kernel_for_the_image(name: str, machine: Machine) -> None:
    machine.release = dict(zip(("ID", "VERSION_ID"), name.split("-"), strict=True))
    row = nova.distribution()
    assert row["kernel"].startswith("linux-image-")
    assert row["packages"] == PACKAGES["packages"]


# ---- uv.lock ----


def locked_requirements() -> dict[str, list[dict[str, Any]]]:
    ours = next(p for p in LOCK["package"] if p["name"] == PROJECT["project"]["name"])
    groups: dict[str, list[dict[str, Any]]] = ours["metadata"]["requires-dev"]
    return groups


def flat(group: str) -> list[str]:
    """A group of pyproject.toml with the groups that it includes."""
    rows = PROJECT["dependency-groups"][group]
    return [word for row in rows for word in (flat(row["include-group"]) if isinstance(row, dict) else [row])]


@pytest.mark.parametrize("group", ["tool", "cloud", "cloud-build", "tests", *(group for group, _ in nova.GROUPS)])
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
    wheel = nova.locked("uv", rf"linux\S*_{machine_type}\.whl$")  # as make_tool_environment asks for it
    assert re.search(rf"/uv-[\d.]+-py3-none-manylinux\S+_{machine_type}\.whl$", wheel["url"])


def test_branchs_nova_is_in_the_lock() -> None:
    version = next(row["specifier"] for row in locked_requirements()["cloud"] if row["name"] == "nova")
    assert nova.locked("nova", r"\.tar\.gz$")["url"].endswith(f"/nova-{version.removeprefix('==')}.tar.gz")
