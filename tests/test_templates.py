# SPDX-License-Identifier: Apache-2.0
"""Every template, rendered with the default settings, is what its reader expects."""

import configparser
import dataclasses
import importlib.metadata
import json
import re
import string
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import nova

from .conftest import Machine

FILES = [(name, *row) for service in nova.SERVICES.values() for name, row in service.files.items()]
TEMPLATES = [name for name, *_ in FILES if name.endswith(".tmpl")]
INI = [
    t
    for t in TEMPLATES
    if re.search(r"(nova(-db)?|keystone|glance-api|placement|neutron|cinder|ec2api|swift(-\w+)?)\.conf|my\.cnf|\.ini", t)
]
SHELL = ["novarc.tmpl", "conf/window.tmpl", "conf/test.tmpl", "conf/openstack.tmpl"]
ANYWHERE = r"0\.0\.0\.0|\[::\]|=\s*::|listen\w*\s*=\s*\*"


@pytest.fixture
def made(cfg: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> nova.Settings:
    """A cloud's folder with every file in it, those that only a setting asks for as well."""
    monkeypatch.setattr(nova, "services", lambda cfg: nova.SERVICES)
    for name in ("libvirt/hooks", "tgt", "sudoers.d"):
        (nova.ROOTFS / "etc" / name).mkdir(parents=True)
    nova.make_folders(cfg)
    nova.write_config(dataclasses.replace(cfg, USE_IPV6=True))
    return cfg


def rendered(template: str) -> Path:
    path = next(path for name, path, *_ in FILES if name == template)
    return Path(string.Template(path).substitute(nova.PATHS))


def parsed(template: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, allow_no_value=True, default_section="")
    parser.read_string(rendered(template).read_text())
    return parser


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_name_in_a_template_is_known(template: str, cfg: nova.Settings) -> None:
    nova.make_folders(cfg)
    text = (nova.HERE / template).read_text().replace("$$", "")
    used = {a or b for a, b in re.findall(r"\$(?:(\w+)|\{(\w+)\})", text)}
    assert used <= set(nova.values(cfg))


def test_an_unknown_name_is_an_error(cfg: nova.Settings) -> None:
    with pytest.raises(KeyError, match="HOST_IPP"):
        nova.render("my_ip = $HOST_IPP", cfg)


@pytest.mark.parametrize("row", FILES, ids=lambda row: row[0])
def test_a_file_has_its_mode_and_its_owner(
    row: tuple[str, Path, int, str], made: nova.Settings, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, _, mode, owner = row
    path = rendered(template)
    assert path.stat().st_mode & 0o7777 == mode
    user = nova.USERS[owner].partition(":")[0].replace("caller", "root")
    assert machine.owners[str(path).removeprefix(str(machine.root)) + ".new"] == user


def test_secrets_are_only_in_files_that_nobody_else_reads(made: nova.Settings) -> None:
    secrets = json.loads((nova.STATE / "passwords.json").read_text())
    assert set(secrets) == set(nova.SECRETS)
    files = [p for p in nova.HOME.resolve().rglob("*") if p.is_file()]
    tell = {p for p in files if any(s in p.read_text(errors="replace") for s in secrets.values())}
    assert len(tell) > 8
    assert [p for p in tell if p.stat().st_mode & 0o077] == []
    keys = [p for p in files if p.parent.name in ("fernet", "credential")]
    assert [oct(p.stat().st_mode & 0o777) for p in keys] == ["0o600"] * 4


@pytest.mark.parametrize("template", TEMPLATES)
def test_nothing_listens_on_every_address(template: str, made: nova.Settings) -> None:
    assert re.findall(ANYWHERE, rendered(template).read_text()) == []


def test_no_service_listens_on_every_address(made: nova.Settings) -> None:
    assert [w.name for w in nova.WINDOWS.values() if re.search(ANYWHERE + r"| :\d", nova.render(w.command, made))] == []


@pytest.mark.parametrize("template", [t for t in TEMPLATES if t not in ("conf/grants.sql.tmpl", "conf/rabbitmq-plugins.tmpl")])
def test_a_file_says_where_to_edit_it(template: str, made: nova.Settings) -> None:
    text = re.sub("^#!.*\n", "", rendered(template).read_text())
    assert text.startswith(f"# written by nova.py; edit {template}")


def test_every_ini_file_is_looked_at() -> None:
    assert len(INI) == 14


@pytest.mark.parametrize("template", INI)
def test_an_ini_file_has_no_option_twice(template: str, made: nova.Settings) -> None:
    assert parsed(template).sections()


@pytest.mark.parametrize("template", INI)
def test_an_ini_file_has_no_empty_section(template: str, made: nova.Settings) -> None:
    parser = parsed(template)
    assert [s for s in parser.sections() if not parser.options(s)] == []


@pytest.mark.parametrize(
    "template", ["nova.conf.tmpl", "conf/glance-api.conf.tmpl", "conf/placement.conf.tmpl", "conf/cinder.conf.tmpl"]
)
def test_a_service_logs_in_as_its_user_of_the_catalog(template: str, made: nova.Settings) -> None:
    part = parsed(template)["keystone_authtoken"]
    assert part["username"] in {name for name, service in nova.SERVICES.items() if service.endpoint[0]}
    assert part["password"] == nova.values(made)["SERVICE_PASSWORD"]


def test_nova_compute_cannot_reach_the_database(made: nova.Settings) -> None:
    assert "database" not in parsed("nova.conf.tmpl")
    assert "mysql" not in rendered("nova.conf.tmpl").read_text()


DATABASES = [
    ("conf/keystone.conf.tmpl", "database", "keystone"),
    ("conf/glance-api.conf.tmpl", "database", "glance"),
    ("conf/placement.conf.tmpl", "placement_database", "placement"),
    ("conf/nova-db.conf.tmpl", "database", "nova_cell1"),
    ("conf/nova-db.conf.tmpl", "api_database", "nova_api"),
]


@pytest.mark.parametrize(("template", "section", "name"), DATABASES)
def test_a_database_is_in_mariadb_or_in_a_file(template: str, section: str, name: str, made: nova.Settings) -> None:
    url = f"mysql+pymysql://nova:the-mysql-pass@localhost/{name}?unix_socket={nova.STATE}/mysql/sock&ssl_disabled=true"
    assert parsed(template)[section]["connection"] == url
    text = nova.render((nova.HERE / template).read_text(), nova.replace(made, USE_MYSQL=False))
    assert f"connection = sqlite:///{nova.STATE}/databases/sqlite/{name}?plugin=immediate&timeout=60\n" in text
    assert "the-mysql-pass" not in text


def test_neutron_is_always_in_mariadb(made: nova.Settings) -> None:
    text = nova.render((nova.HERE / "conf/neutron.conf.tmpl").read_text(), nova.replace(made, USE_MYSQL=False))
    assert f"connection = mysql+pymysql://nova:the-mysql-pass@localhost/neutron?unix_socket={nova.STATE}/mysql/sock" in text


def test_sqlites_plugin_is_a_package_of_the_environments_when_it_is_asked_for(cfg: nova.Settings) -> None:
    asked = nova.replace(cfg, USE_MYSQL=False, USE_EC2=True)
    sites = [place / "lib/python3.13/site-packages" for place in (nova.ENV, nova.EC2)]
    for name in ("libvirt/hooks", "sudoers.d"):
        (nova.ROOTFS / "etc" / name).mkdir(parents=True)
    nova.make_folders(cfg)
    nova.write_config(cfg)
    assert [path for site in sites if site.exists() for path in site.iterdir()] == []
    nova.make_folders(asked)
    nova.write_config(asked)
    for site in sites:
        (found,) = importlib.metadata.distributions(path=[str(site)])
        (plugin,) = found.entry_points
        assert (plugin.group, plugin.name, plugin.attr) == ("sqlalchemy.plugins", "immediate", "Immediate")
        assert f"class {plugin.attr}(" in (site / f"{plugin.module}.py").read_text()


def test_nova_conf_has_the_settings(made: nova.Settings) -> None:
    conf = parsed("nova.conf.tmpl")
    assert conf["DEFAULT"]["my_ip"] == "192.0.2.10"
    assert conf["DEFAULT"]["host"] == "testhost"
    assert conf["DEFAULT"]["instances_path"] == str(nova.HOME / "instances")
    assert conf["oslo_concurrency"]["lock_path"] == str(nova.STATE / "locks")
    assert conf["libvirt"]["virt_type"] == "qemu"


def test_kvm_gets_into_nova_conf(cfg: nova.Settings) -> None:
    chosen = nova.settings_from({"LIBVIRT_TYPE": "kvm"}, str(cfg.DIR))
    nova.make_folders(chosen)
    assert "\nvirt_type = kvm\n" in nova.render((nova.HERE / "nova.conf.tmpl").read_text(), chosen)


@pytest.mark.parametrize("asked", [False, True])
def test_instances_have_a_vnc_server_and_a_serial_port_where_consoles_are_asked_for(cfg: nova.Settings, asked: bool) -> None:
    nova.make_folders(cfg)
    conf = configparser.ConfigParser(interpolation=None, default_section="")
    conf.read_string(nova.render((nova.HERE / "nova.conf.tmpl").read_text(), replace(cfg, CONSOLES=asked)))
    assert [conf.getboolean(section, "enabled") for section in ("vnc", "serial_console")] == [asked] * 2


def test_every_port_of_a_console_is_guarded(made: nova.Settings) -> None:
    qemu = dict(re.findall(r"^remote_display_port_(min|max) = (\d+)$", rendered("conf/qemu.conf.tmpl").read_text(), re.M))
    serial = parsed("nova.conf.tmpl")["serial_console"]["port_range"].split(":")
    guard = re.search(r"tcp dport (\d+)-(\d+) ", rendered("conf/consoles.nft.tmpl").read_text())
    assert guard and (int(guard[1]), int(guard[2])) == (nova.CONSOLE_PORTS[0], nova.CONSOLE_PORTS[-1])
    ports = [int(port) for port in (qemu["min"], qemu["max"], *serial)]
    assert ports == sorted(ports) and set(ports) <= set(nova.CONSOLE_PORTS)
    assert ports[0] >= 5900, "libvirt wants no less"
    assert ports[-1] < 32768, "from here on the kernel gives ports to whoever connects"


def test_taps_carry_the_mark_by_which_scrub_knows_them(made: nova.Settings) -> None:
    assert parsed("conf/neutron.conf.tmpl")["DEFAULT"]["base_mac"] == f"{nova.PATHS['MAC_PREFIX']}:00:00:00"


def test_the_metadata_secret_is_the_same_on_both_sides(made: nova.Settings) -> None:
    nova_side = parsed("nova.conf.tmpl")["neutron"]["metadata_proxy_shared_secret"]
    assert nova_side == parsed("conf/neutron.conf.tmpl")["DEFAULT"]["metadata_proxy_shared_secret"]


# ---- For the user's shell and clients ----


@pytest.mark.parametrize("template", [*SHELL, "conf/libvirt-hook.tmpl"])
def test_a_file_for_the_shell_is_valid_bash(template: str, made: nova.Settings, real: Callable[[str], str]) -> None:
    done = subprocess.run([real("bash"), "-n", rendered(template)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def sourced(path: Path, bash: str, env: str, cwd: Path, before: dict[str, str] | None = None) -> dict[str, str]:
    """The environment after sourcing a file in a shell that has `before` in its own."""
    line = f'PATH=/a/path:/usr/bin:/bin; set -eu; . "$1"; exec {env} -0'
    said = subprocess.run([bash, "-c", line, "-", path], capture_output=True, text=True, check=True, cwd=cwd, env=before or {})
    return dict(pair.split("=", 1) for pair in said.stdout.split("\0")[:-1])


def test_novarc_sets_todays_names_and_nova_shs(made: nova.Settings, real: Callable[[str], str], tmp_path: Path) -> None:
    found = sourced(nova.HOME / "novarc", real("bash"), real("env"), tmp_path)
    names = {
        "URL": "AUTH_URL",
        "USERNAME": "USERNAME",
        "API_KEY": "PASSWORD",
        "PROJECT_ID": "PROJECT_NAME",
        "REGION_NAME": "REGION_NAME",
    }
    assert {old: found[f"NOVA_{old}"] for old in names} == {old: found[f"OS_{new}"] for old, new in names.items()}
    assert found["OS_AUTH_URL"] == "http://192.0.2.10:5000/v3"
    assert (found["OS_USERNAME"], found["OS_PASSWORD"]) == ("admin", "the-admin-password")
    assert found["PATH"].startswith("/a/path:")  # the machine's own commands come first
    assert found["PATH"].endswith(f":{made.DIR}/state/bin:{made.DIR}/state/client/bin")  # from wherever it is sourced
    assert found["no_proxy"] == found["NO_PROXY"] == "192.0.2.10,"
    assert found["OS_CLIENT_CONFIG_FILE"] == f"{made.DIR}/clouds.yaml"


def test_novarc_leaves_nothing_of_another_cloud(made: nova.Settings, real: Callable[[str], str], tmp_path: Path) -> None:
    other = {"OS_CLOUD": "other", "OS_PROJECT_ID": "1234", "OS_AUTH_TYPE": "v3token", "OS_CACERT": "/a.pem", "ST_KEY": "k"}
    proxy = {"NO_PROXY": "example.org"}
    found = sourced(nova.HOME / "novarc", real("bash"), real("env"), tmp_path, {**other, **proxy})
    assert not {*other} & {*found}
    assert found["no_proxy"] == found["NO_PROXY"] == "192.0.2.10,example.org"


def test_a_windows_path_begins_with_the_clouds_own_programs(
    made: nova.Settings, real: Callable[[str], str], tmp_path: Path
) -> None:
    found = sourced(nova.CONF / "window", real("bash"), real("env"), tmp_path)
    assert found["PATH"].split(":")[:2] == [str(nova.ENV / "bin"), str(nova.CONF)]
    assert found["PWD"] == str(nova.STATE)


def test_clouds_yaml_has_the_names_that_jobs_expect(made: nova.Settings) -> None:
    clouds = yaml.safe_load((nova.HOME / "clouds.yaml").read_text())["clouds"]
    assert {"nova", "devstack", "devstack-admin", "devstack-alt", "devstack-system-admin"} <= {*clouds}
    users = {("admin", "admin", "admin"), ("admin", "system", "admin"), *nova.ACCOUNTS}  # the first two are keystone's own
    known = {(user, place) for user, place, _ in users}
    auths = [cloud["auth"] for cloud in clouds.values()]
    assert {(auth["username"], auth.get("project_name", "system")) for auth in auths} <= known
    assert {auth.get("system_scope", "all") for auth in auths} == {"all"}


def test_clouds_yaml_says_what_novarc_says(made: nova.Settings) -> None:
    auth = yaml.safe_load((nova.HOME / "clouds.yaml").read_text())["clouds"]["nova"]["auth"]
    novarc = (nova.HOME / "novarc").read_text()
    for key, name in (("auth_url", "OS_AUTH_URL"), ("username", "OS_USERNAME"), ("password", "OS_PASSWORD")):
        assert f'export {name}="{auth[key]}"\n' in novarc


PASSWORDS = ["12345678", "0x1234567", "1234_5678", "1e10000000", "-starts-so", "~tilde~~~"]


@pytest.mark.parametrize("password", PASSWORDS)
def test_any_password_that_is_taken_survives_yaml(password: str, cfg: nova.Settings) -> None:
    chosen = nova.settings_from({"ADMIN_PASSWORD": password}, str(cfg.DIR))
    nova.make_folders(chosen)
    text = nova.render((nova.HERE / "conf/clouds.yaml.tmpl").read_text(), chosen)
    assert yaml.safe_load(text)["clouds"]["nova"]["auth"]["password"] == password
