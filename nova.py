#!/usr/bin/env python3
"""usage: sudo python3 nova.py [-v] [-p] VERB [ARGUMENT...]

A real OpenStack Nova on this machine by one command, and back again: nova.sh, for today's OpenStack.

  branch [SOURCE] [DIR]  fetch nova's source into DIR (default: nova)
  install [DIR]          packages, OpenStack's environment, databases, the test image
  run [DIR]              a new cloud, every service in a window of one screen session; taken down when that ends
  run_detached [DIR]     the same in the background: the cloud stays up
  terminate [DIR]        end every instance
  clean [DIR]            end the session and every process that it started
  scrub [DIR]            remove what a cloud left on the machine: bridges, rules, domains
  settings               every variable with its value and its meaning

run does what is missing first, so one command is enough:  sudo python3 nova.py run
-v shows every command; all of it is in DIR/state/log/nova.log.  -p asks for the passwords that are not there yet;
without it they are generated.  Settings are environment variables: README.md
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import fcntl
import functools
import getpass
import hashlib
import io
import ipaddress
import json
import logging
import os
import platform
import pwd
import re
import secrets
import shlex
import shutil
import socket
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

try:
    import tomllib
except ImportError:
    sys.exit("nova.py needs Python 3.11 or newer, as Debian 12 has it")

HERE = Path(__file__).resolve().parent
TOOL = HERE / ".tool"  # nova.py's own environment and the downloads for it


NETWORK = "check the network and the package sources, then repeat: it goes on where it stopped"


class Failure(Exception):
    """What went wrong, in words for the user; `hint` is what to do, `tail` the last lines that the command said."""

    def __init__(self, message: str, hint: str = "", tail: tuple[str, ...] = (), code: int = 1, during: str = "") -> None:
        super().__init__(message)
        self.hint, self.tail, self.code, self.during = hint, tail, code, during


# ---- Bootstrap: from a bare python3 to the environment this module needs ----


def locked(name: str, pattern: str) -> dict[str, Any]:
    """The file of package `name` in uv.lock whose URL has `pattern` (a regular expression) in it: {url, hash, ...}."""
    packages = tomllib.loads((HERE / "uv.lock").read_text())["package"]
    package = next(p for p in packages if p["name"] == name)
    for file in [*package.get("wheels", ()), package.get("sdist", {})]:
        if re.search(pattern, file.get("url", "")):
            return dict(file)
    raise Failure(f"uv.lock has no {name} like {pattern}: this kind of machine was not tried")


def download(url: str, sha256: str) -> bytes:
    """The bytes behind `url`, refused when they are not the ones that were asked for."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise Failure(f"cannot download {url}: {error}", NETWORK) from None
    if hashlib.sha256(content).hexdigest() != sha256.removeprefix("sha256:"):
        raise Failure(f"{url} is not the file that uv.lock names (its SHA-256 differs)", "repeat; if it stays so, do not use it")
    return content


def make_tool_environment() -> None:
    """Put uv, and with it the group `tool` of uv.lock, into .tool; needs nothing but python3's standard library."""
    print("Make nova.py's own environment (.tool)", file=sys.stderr, flush=True)
    shutil.rmtree(TOOL, ignore_errors=True)
    TOOL.mkdir()
    wheel = locked("uv", rf"linux\S*_{platform.machine()}\.whl$")
    with zipfile.ZipFile(io.BytesIO(download(wheel["url"], wheel["hash"]))) as archive:
        binary = next(n for n in archive.namelist() if n.endswith("/scripts/uv"))
        (TOOL / "uv").write_bytes(archive.read(binary))
    (TOOL / "uv").chmod(0o755)
    environment = {**os.environ, "UV_SYSTEM_CERTS": "1", "UV_CACHE_DIR": str(TOOL / "cache")}
    wanted = TOOL / "requirements.txt"
    for arguments in (
        ("venv", "--python", sys.executable, TOOL / "env"),
        ("export", "--frozen", "--only-group", "tool", "--output-file", wanted),
        ("pip", "install", "--python", TOOL / "env", "--require-hashes", "--requirements", wanted),
    ):
        line = [str(word) for word in (TOOL / "uv", "--quiet", "--no-config", *arguments)]
        done = subprocess.run(line, env=environment, cwd=HERE, capture_output=True, check=False, text=True)
        if done.returncode:
            raise Failure(f"{shlex.join(line)} failed", NETWORK, tuple(done.stderr.splitlines()[-20:]))
    shutil.copy(HERE / "uv.lock", TOOL / "made-from")


def bootstrap() -> None:
    """Start again in nova.py's own environment and with mounts of its own, made first where missing.

    With sudo a user's packages are out of sight, so the environment is nova.py's own. Mounts: see private_mounts.
    """
    if os.environ.pop("NOVA_PY_PRIVATE", ""):
        return
    lock, made_from, python = HERE / ".tool.lock", TOOL / "made-from", TOOL / "env/bin/python"

    def made() -> bool:
        return python.exists() and made_from.exists() and made_from.read_bytes() == (HERE / "uv.lock").read_bytes()

    try:
        if not made():
            with open(lock, "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not made():
                    make_tool_environment()
    except Failure as failure:
        sys.exit(tell_failure(failure))
    except PermissionError as error:
        sys.exit(tell_failure(Failure(str(error), "once with sudo, then without")))
    except KeyboardInterrupt:
        print("nova.py: interrupted; nothing but .tool was begun, and the next call makes it anew", file=sys.stderr)
        sys.exit(130)
    os.environ["NOVA_PY_PRIVATE"] = "1"
    own = [str(python), str(HERE / "nova.py"), *sys.argv[1:]]
    if os.geteuid() == 0:
        own = ["unshare", "--mount", "--propagation", "slave", *own]
    os.execvp(own[0], own)


def tell_failure(failure: Failure) -> int:
    """Print a failure for a person; return the exit code it asks for."""
    lines = [f"nova.py: {failure}"]
    if failure.during:
        lines.insert(0, f"\nnova.py stopped at: {failure.during}")
    lines += [f"    | {line}" for line in failure.tail]
    lines += [f"  {failure.hint}"] if failure.hint else []
    lines += [f"  everything it did: {LOG_FILE[0]}"] if LOG_FILE and failure.code == 1 else []
    print("\n".join(lines), file=sys.stderr)
    return failure.code


LOG_FILE: list[Path] = []  # one, once there is a folder
VERB_WORDS = re.findall(r"^  (\w+) ", __doc__, re.MULTILINE)

if __name__ == "__main__":
    words = [w for w in sys.argv[1:] if w not in ("-v", "-p")]
    if {"-h", "--help", "help"} & set(words):
        print(__doc__.rstrip())
        sys.exit(0)
    if not words or words[0] not in VERB_WORDS:
        print(f"nova.py: no verb {words[0]!r}\n" if words else "nova.py: which verb?\n", file=sys.stderr)
        print(__doc__.rstrip(), file=sys.stderr)
        sys.exit(2)
    if os.geteuid() != 0 and words[0] != "settings":
        print(f"nova.py: {words[0]} needs root: sudo python3 nova.py {' '.join(words)}", file=sys.stderr)
        sys.exit(1)
    bootstrap()

import netifaces  # noqa: E402
import psutil  # noqa: E402
import sh  # noqa: E402

# ---- Settings: nova.sh's environment variables, name, default and meaning side by side ----


def setting(default: Any, meaning: str) -> Any:
    """One row of the table below: its environment variable is its name."""
    return field(default=default, metadata={"meaning": meaning})


# fmt: off
@dataclass(frozen=True)
class Settings:
    """What the user asked for. Made once, by settings_from; nothing else reads the environment."""

    DIR: Path              = setting(Path("nova"), "the cloud's folder: nova's source, instances, novarc (an argument)")
    SCREEN_NAME: str       = setting("nova",       "name of the screen session")
    SCREEN_STATUS: bool    = setting(True,         "1: a status line that names the windows")
    USE_MYSQL: bool        = setting(True,         "1: a private MariaDB; 0: SQLite, but for neutron")
    MYSQL_PASS: str        = setting("",           "password of that MariaDB; generated when empty")
    ADMIN_PASSWORD: str    = setting("",           "password of the cloud's user admin; generated when empty")
    SERVICE_PASSWORD: str  = setting("",           "password of the services' users; generated when empty")
    RABBIT_PASS: str       = setting("",           "password of the services at RabbitMQ; generated when empty")
    METADATA_SECRET: str   = setting("",           "what neutron's metadata agent shows to nova; generated when empty")
    INTERFACE: str         = setting("",           "interface to the outside; the one of the default route when empty")
    HOST_IP: str           = setting("",           "address of the APIs; the address of INTERFACE when empty")
    FLOATING_RANGE: str    = setting("10.6.0.0/27", "floating addresses; the first is this machine's own")
    FIXED_RANGE: str       = setting("10.0.0.0/24", "addresses of the network private")
    INSTANCES_PATH: str    = setting("",           "where instances' disks are; DIR/instances when empty")
    LOCK_PATH: str         = setting("",           "where services keep their locks; DIR/state/locks when empty")
    LIBVIRT_TYPE: str      = setting("qemu",       "qemu, or kvm")
    NET_MAN: str           = setting("VlanManager", "a VLAN a project; or FlatDHCPManager; or FlatManager: no DHCP")
    FLAT_INTERFACE: str    = setting("",           "spare interface that joins the bridge br100")
    VOLUMES_SIZE: str      = setting("0",          "GiB for volumes; 0: no volumes")
    CONSOLES: bool         = setting(False,        "1: instances' consoles in the browser and by websocket")
    IMAGE: str             = setting("",           "path or URL of an image (qcow2 or raw) to add")
    TEST: str              = setting("0",          "1: run a part of nova's unit tests first; all: all of them")
    USE_LDAP: bool         = setting(False,        "1: users in OpenLDAP")
    USE_OPENDJ: bool       = setting(False,        "1: users in OpenDJ")
    USE_IPV6: bool         = setting(False,        "1: IPv6 beside IPv4")


# What nova.sh had and nova.py does not have (yet): better refused than ignored.
REFUSED: dict[tuple[str, object], str] = {
    ("LIBVIRT_TYPE", "uml"):     "libvirt (5.0) and nova (23.0) dropped user-mode Linux; use qemu",
    ("LIBVIRT_TYPE", "lxc"):     "containers are not ported yet; use qemu",
    **{("NET_MAN", flat): "not ported yet; use VlanManager" for flat in ("FlatManager", "FlatDHCPManager")},
    **{("TEST", value): "not ported yet" for value in ("1", "all")},
    **{(name, ...): "not ported yet" for name in ("VOLUMES_SIZE", "CONSOLES", "IMAGE")},
    **{(name, True): "not ported yet" for name in ("USE_LDAP", "USE_OPENDJ", "USE_IPV6")},
    ("FLAT_INTERFACE", ...):     "not ported yet",
    ("INSTANCES_PATH", ...):     "not ported yet; instances are in DIR/instances",
    ("LOCK_PATH", ...):          "not ported yet; locks are in DIR/state/locks",
}
# Given, prompted for (-p) or generated; kept in passwords.json alone.
SECRETS = ("MYSQL_PASS", "ADMIN_PASSWORD", "SERVICE_PASSWORD", "RABBIT_PASS", "METADATA_SECRET")
CHOICES = {
    "LIBVIRT_TYPE": ("qemu", "kvm", "lxc", "uml"),
    "NET_MAN": ("VlanManager", "FlatDHCPManager", "FlatManager"),
    "TEST": ("0", "1", "all"),
}

# ---- Tables: users, ports, paths ----

USER       = "nova-py"       # owns every process that does not need root
GUEST_USER = "libvirt-qemu"  # owns the instances' QEMUs; libvirt does not start where nobody has this name
ROOT       = "root"          # for what wires networks and starts instances

# The cloud's folder as its processes see it (private_mounts): short enough for sockets, the same wherever DIR is.
HOME  = Path("/run/nova.py")
STATE = HOME / "state"
ENV   = STATE / "env"
CONF  = STATE / "conf"
PATHS = dict(
    HOME=HOME, STATE=STATE, CONF=CONF, ENV=ENV, BIN=ENV / "bin", GUEST_USER=GUEST_USER,
    OVS=STATE / "ovs", OVSDB=f"unix:{STATE}/ovs/db.sock", MAC_PREFIX="fa:6e:70",
    RABBIT_PORT=35672, RABBIT_DIST_PORT=35673, EPMD_PORT=34369,
)

# folder under DIR            owner
FOLDERS = (
    ("instances",               ROOT),
    ("images",                  ROOT),
    ("state/log",               ROOT),
    ("state/run",               ROOT),
    ("state/cache",             ROOT),
    ("state/conf",              USER),
    ("state/locks",             USER),
    ("state/nova",              USER),
    ("state/keystone/fernet",   USER),
    ("state/keystone/credential", USER),
    ("state/glance/images",     USER),
    ("state/glance/staging",    USER),
    ("state/neutron",           USER),
    ("state/mysql",             USER),
    ("state/databases",         USER),
    ("state/rabbit",            USER),
    ("state/ovs",               USER),
)

# What every run begins without.
EMPTIED = (
    "state/mysql", "state/databases", "state/rabbit", "state/ovs", "state/nova", "state/glance/images", "state/neutron",
    "state/libvirt/etc/qemu", "state/libvirt/lib", "state/libvirt/run", "instances",
)

# libvirt is the cloud's own: a folder of the machine, and the one under DIR that the cloud's processes see there.
PRIVATE_FOLDERS = (
    ("/etc/libvirt",       "state/libvirt/etc"),
    ("/run/libvirt",       "state/libvirt/run"),
    ("/var/lib/libvirt",   "state/libvirt/lib"),
    ("/var/cache/libvirt", "state/libvirt/cache"),
    ("/var/log/libvirt",   "state/libvirt/log"),
)

# template             written to                       mode   owner
CONFIG_FILES = (
    ("nova.conf.tmpl",             CONF / "nova.conf",            0o600, USER),
    ("conf/nova-db.conf.tmpl",     CONF / "nova-db.conf",         0o600, USER),
    ("conf/keystone.conf.tmpl",    CONF / "keystone.conf",        0o600, USER),
    ("conf/glance-api.conf.tmpl",  CONF / "glance-api.conf",      0o600, USER),
    ("conf/placement.conf.tmpl",   CONF / "placement.conf",       0o600, USER),
    ("conf/neutron.conf.tmpl",     CONF / "neutron.conf",         0o600, USER),
    ("conf/my.cnf.tmpl",           CONF / "my.cnf",               0o600, USER),
    ("conf/grants.sql.tmpl",       CONF / "grants.sql",           0o600, USER),
    ("conf/rabbitmq.conf.tmpl",    CONF / "rabbitmq.conf",        0o600, USER),
    ("conf/rabbitmq-plugins.tmpl", CONF / "rabbitmq-plugins",     0o644, USER),
    ("conf/uwsgi.ini.tmpl",        CONF / "uwsgi.ini",            0o644, USER),
    ("conf/nat.nft.tmpl",          CONF / "nat.nft",              0o644, ROOT),
    ("conf/window.tmpl",           CONF / "window",               0o644, ROOT),
    ("conf/test.tmpl",             CONF / "test",                 0o644, ROOT),
    ("conf/screenrc.tmpl",         CONF / "screenrc",             0o644, ROOT),
    ("conf/libvirtd.conf.tmpl",    Path("/etc/libvirt/libvirtd.conf"), 0o644, ROOT),
    ("conf/qemu.conf.tmpl",        Path("/etc/libvirt/qemu.conf"),     0o644, ROOT),
    ("novarc.tmpl",                HOME / "novarc",               0o600, "caller"),
    ("conf/clouds.yaml.tmpl",      HOME / "clouds.yaml",          0o600, "caller"),
)

# ---- Tables: the services, one window each, in the order in which they start ----


class Service(NamedTuple):
    """A row below: window, user, command, and where it answers: a URL, a host:port, a socket; "" where the APIs tell."""

    window: str
    user: str
    command: str
    answers: str = ""


API = "uwsgi --ini $CONF/uwsgi.ini --http-socket"
NOVA_CONF = "--config-file $CONF/nova.conf --config-file $CONF/nova-db.conf"

# What OpenStack stands on.
SERVERS = (
    Service("mysql",        USER, "mariadbd --defaults-file=$CONF/my.cnf --datadir=$STATE/databases/mysql", "$STATE/mysql/sock"),
    Service("rabbit",       USER, "env HOME=$STATE/rabbit /usr/lib/rabbitmq/bin/rabbitmq-server", "127.0.0.1:$RABBIT_PORT"),
    Service("ovsdb",        USER, "ovsdb-server --remote=p$OVSDB --unixctl=$OVS/ovsdb.ctl"
                                  " $OVS/conf.db $OVS/ovnnb.db $OVS/ovnsb.db", "$OVS/db.sock"),
    Service("vswitchd",     ROOT, "ovs-vswitchd --unixctl=$OVS/vswitchd.ctl $OVSDB", "$OVS/vswitchd.ctl"),
    Service("northd",       USER, "ovn-northd --unixctl=$OVS/northd.ctl --ovnnb-db=$OVSDB --ovnsb-db=$OVSDB", "$OVS/northd.ctl"),
    Service("libvirt",      ROOT, "libvirtd", "/run/libvirt/libvirt-sock"),
)
# OpenStack's own. ovn-controller (23.03) crashes where the bridges are not there yet, so it is here; keystone comes
# first of the others, because they all ask it who is asking.
CONTROL = (
    Service("ovn",          ROOT, "ovn-controller $OVSDB"),
    Service("keystone",     USER, f"{API} $HOST_IP:5000 --module keystone.wsgi.api:application", "http://$HOST_IP:5000/v3"),
    Service("placement",    USER, f"{API} $HOST_IP:8778 --module placement.wsgi.api:application", "http://$HOST_IP:8778/"),
    Service("network",      USER, f"{API} $HOST_IP:9696 --module neutron.wsgi.api:application", "http://$HOST_IP:9696/"),
    Service("api",          USER, f"{API} $HOST_IP:8774 --module nova.wsgi.osapi_compute:application", "http://$HOST_IP:8774/"),
    Service("conductor",    USER, f"nova-conductor {NOVA_CONF}"),
    Service("glance",       USER, f"{API} $HOST_IP:9292 --module glance.wsgi.api:application", "http://$HOST_IP:9292/"),
    Service("network-ovn",  USER, "neutron-ovn-maintenance-worker --config-file $CONF/neutron.conf"),
    Service("metadata",     USER, f"{API} 127.0.0.1:8775 --module nova.wsgi.metadata:application", "http://127.0.0.1:8775/"),
)
# Last: when they start, nova-compute asks the conductor, and waits ten seconds where there is none yet, and the
# scheduler asks placement.
WORKERS = (
    Service("scheduler",    USER, f"nova-scheduler {NOVA_CONF}"),
    Service("compute",      ROOT, "nova-compute --config-file $CONF/nova.conf"),
    Service("network-meta", ROOT, "neutron-ovn-metadata-agent --config-file $CONF/neutron.conf"),
)
SERVICES = {service.window: service for service in SERVERS + CONTROL + WORKERS}

# ---- Tables: databases, endpoints, flavors ----

# What templates call the databases, by USE_MYSQL. neutron is always in MariaDB: its project does not support SQLite (its
# migrations alter constraints, and it opens a second writing session while its first is open). CELL is for nova-manage,
# which puts the parts of nova's own connection in: a password has no place in argv.
DATABASE_URLS = {
    True:  dict(DATABASE="mysql+pymysql://nova:$MYSQL_PASS@localhost", QUERY=f"unix_socket={STATE}/mysql/sock",
                CELL="{scheme}://{username}:{password}@{hostname}"),
    False: dict(DATABASE=f"sqlite:///{STATE}/databases/sqlite", QUERY="plugin=immediate&timeout=60",
                CELL=f"sqlite:///{STATE}/databases/sqlite"),
}
# database, and the commands that fill it; these run beside those of the other rows
DATABASES = (
    (("nova_api", "nova_cell0", "nova_cell1"), (
        f"nova-manage {NOVA_CONF} api_db sync",
        f"nova-manage {NOVA_CONF} cell_v2 map_cell0 --database_connection $CELL/nova_cell0?{{query}}",
        f"nova-manage {NOVA_CONF} cell_v2 create_cell --name cell1 --database_connection $CELL/nova_cell1?{{query}}"
        " --transport-url {scheme}://{username}:{password}@{hostname}:{port}/",
        f"nova-manage {NOVA_CONF} db sync")),
    (("keystone",),  ("keystone-manage --config-file $CONF/keystone.conf db_sync",
                      "keystone-manage --config-file $CONF/keystone.conf bootstrap")),
    (("glance",),    ("glance-manage --config-file $CONF/glance-api.conf db_sync",)),
    (("placement",), ("placement-manage --config-file $CONF/placement.conf db sync",)),
    (("neutron",),   ("neutron-db-manage --config-file $CONF/neutron.conf upgrade heads",)),
)

# user,       type,         url
ENDPOINTS = (
    ("glance",    "image",     "http://$HOST_IP:9292"),
    ("placement", "placement", "http://$HOST_IP:8778"),
    ("nova",      "compute",   "http://$HOST_IP:8774/v2.1"),
    ("neutron",   "network",   "http://$HOST_IP:9696"),
)

# name,     id,  MiB,   GiB, CPUs
FLAVORS = (
    ("m1.tiny",   "1",   512,   1, 1),
    ("m1.small",  "2",  2048,  20, 1),
    ("m1.medium", "3",  4096,  40, 2),
    ("m1.large",  "4",  8192,  80, 4),
    ("m1.xlarge", "5", 16384, 160, 8),
)

# image,            format, file,      properties (a part's name stands for its id)
IMAGE_PARTS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("ami-tty-kernel",  "aki", "vmlinuz",  {}),
    ("ami-tty-ramdisk", "ari", "initrd",   {}),
    ("ami-tty",         "ami", "root.img", {"kernel_id": "ami-tty-kernel", "ramdisk_id": "ami-tty-ramdisk", "os_command_line":
                                            "root=/dev/vda console=tty1 console=ttyS0 quiet no_timer_check"}),
)

# What only a setting asks for: first columns of rows above, and groups of pyproject.toml; packages: conf/packages.toml.
ONLY_WITH: dict[str, set[object]] = {
    "VOLUMES_SIZE": set(),
    "CONSOLES":     set(),
}
# fmt: on


def rows(cfg: Settings, *tables: tuple[Any, ...]) -> list[Any]:
    """The tables' rows that these settings ask for, in their order."""
    off = {name for setting, names in ONLY_WITH.items() if getattr(cfg, setting) in (False, "", "0") for name in names}
    return [row for table in tables for row in table if row[0] not in off]


# ---- Talking: the log, steps, the caller ----

log = logging.getLogger("nova.py")
BEGAN = time.monotonic()
STEPS: list[tuple[str, float]] = []  # what each step took, in seconds, in the order in which they ended


def start_log(cfg: Settings) -> None:
    """Everything goes to DIR/state/log/nova.log, with the time; -v shows it on the screen as well."""
    path = cfg.DIR / "state/log/nova.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    LOG_FILE[:] = [path]


def say(line: str) -> None:
    """A line for the person who waits."""
    print(line, file=sys.stderr, flush=True)
    log.info("%s", line)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done and at which second; a Failure inside is told with it."""
    started = time.monotonic()
    say(f"{started - BEGAN:6.1f} s  {what}")
    try:
        yield
    except Failure as failure:
        failure.during = failure.during or what
        raise
    except Exception as error:  # of the APIs' client, mostly: told like the others, in full in the log
        log.exception(what)
        raise Failure(f"{type(error).__name__}: {error}", during=what) from error
    STEPS.append((what, time.monotonic() - started))


def in_parallel(*functions: Callable[[], Any]) -> None:
    """Call all of them at once and wait for all; the first failure is raised."""
    with concurrent.futures.ThreadPoolExecutor(len(functions)) as pool:
        for done in [pool.submit(f) for f in functions]:
            done.result()


# ---- Commands: do changes the machine, ask only looks ----

PLAIN = {"LC_ALL": "C.UTF-8"}  # what commands say is read, by the log's reader at least


def do(*argv: object, user: str = ROOT, text: str = "", env: Mapping[str, str] = {}, cwd: object = "/", hint: str = "") -> None:
    """Run a command that changes the machine; log all that it says; raise Failure with its last lines and `hint`.

    `text` is its standard input, `env` is added to its environment: secrets go there, argv is logged.
    """
    words = [str(word) for word in argv]
    if user != ROOT:
        words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *words]
    log.debug("+ %s", shlex.join(words))
    tail: collections.deque[str] = collections.deque(maxlen=20)

    def keep(line: str) -> None:
        log.debug("  %s", line.rstrip())
        tail.append(line.rstrip())

    options: Any = dict(_in=text, _out=keep, _err_to_out=True, _tty_out=False, _cwd=str(cwd))
    try:
        sh.Command(words[0])(*words[1:], **options, _env={**os.environ, **PLAIN, **env})
    except sh.SignalException_SIGINT:  # Ctrl-C: the command was told first
        raise KeyboardInterrupt from None
    except sh.CommandNotFound:
        raise Failure(f"{words[0]} is not installed", "sudo python3 nova.py install") from None
    except sh.ErrorReturnCode as error:
        raise Failure(f"{shlex.join(words)}\n  ended with exit code {error.exit_code}", hint, tuple(tail)) from None


def ask(*argv: object, ok: tuple[int, ...] = (0,), default: str | None = None) -> str:
    """What a command says, stripped; it must change nothing. `default`, where given, stands for a failure."""
    words = [str(word) for word in argv]
    log.debug("? %s", shlex.join(words))
    try:
        said = sh.Command(words[0])(*words[1:], _in="", _tty_out=False, _ok_code=ok, _env={**os.environ, **PLAIN})
        return str(said).strip()
    except sh.SignalException_SIGINT:
        raise KeyboardInterrupt from None
    except (sh.CommandNotFound, sh.ErrorReturnCode) as error:
        if default is not None:
            return default
        why = error.stderr.decode(errors="replace") if isinstance(error, sh.ErrorReturnCode) else "it is not installed"
        raise Failure(f"{shlex.join(words)} failed", tail=tuple(why.splitlines()[-20:])) from None


def forgiven(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call it; a Failure becomes a line in the log. Only for taking down, where the rest must go on."""
    try:
        function(*arguments, **options)
    except Failure as failure:
        log.info("forgiven: %s %s", failure, " | ".join(failure.tail))


def wait_for(what: str, ready: Callable[[], object], seconds: float, service: Service | None = None) -> None:
    """Look five times a second until `ready` is true; the only place that sleeps.

    A probe may raise: its last error is told when the time is up. The death of `service` in its window ends the wait.
    """
    began, last = time.monotonic(), "it never answered"
    while time.monotonic() < began + seconds:
        try:
            if ready():
                log.debug("%s: ready after %.1f s", what, time.monotonic() - began)
                return
        except Failure:
            raise
        except Exception as error:  # a probe of something that is not up yet may fail in any way
            last = f"{type(error).__name__}: {error}"
        if service and (died := (STATE / f"run/{service.window}.died")).exists() and (line := died.read_text().strip()):
            raise Failure(f"the service of a window died: {line}", tail=last_lines(service.window))
        time.sleep(0.2)
    tail = last_lines(service.window) if service else ()
    raise Failure(f"{what} is not ready after {seconds:.0f} s ({last})", tail=tail)


# ---- The machine: files, the record, windows, processes ----


def values(cfg: Settings) -> dict[str, Any]:
    """What templates may name: settings, paths, ports, passwords."""
    chosen = asdict(cfg)
    known = passwords(STATE)
    urls = {name: string.Template(url).safe_substitute(known) for name, url in DATABASE_URLS[cfg.USE_MYSQL].items()}
    machine = {"HOSTNAME": socket.gethostname(), "DATAPATH": "system" if has_kernel_datapath() else "netdev"}
    return {**chosen, **PATHS, **machine, **known, **urls}


def passwords(state: Path) -> dict[str, str]:
    """The secrets of the cloud with this state folder; none before its first install."""
    return dict(json.loads(path.read_text())) if (path := state / "passwords.json").exists() else {}


def render(text: str, cfg: Settings) -> str:
    """A template with every $NAME put in; an unknown name is an error."""
    return string.Template(text).substitute(values(cfg))


def write_file(path: Path, content: str | bytes, mode: int = 0o644, owner: str = ROOT) -> None:
    """Write it whole or not at all, readable for nobody too early."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content.encode() if isinstance(content, str) else content)
    give(new, owner)
    new.rename(path)


def give(path: Path, owner: str) -> None:
    """Make it `owner`'s; "caller" is who called sudo."""
    user = pwd.getpwnam(owner if owner != "caller" else ROOT)
    uid, gid = user.pw_uid, user.pw_gid
    if owner == "caller":
        uid, gid = int(os.environ.get("SUDO_UID", uid)), int(os.environ.get("SUDO_GID", gid))
    os.chown(path, uid, gid, follow_symlinks=False)


def record(*undo: object) -> None:
    """Write down the command that takes back what comes next, before it comes."""
    with open(STATE / "record", "a") as file:
        file.write(shlex.join(map(str, undo)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def undo_recorded() -> None:
    """Take back everything in the record, last first; a line is gone only when it was tried."""
    path = STATE / "record"
    lines = path.read_text().splitlines() if path.exists() else []
    while lines:
        with contextlib.suppress(ValueError):  # a line that was cut off: what it names was not begun
            forgiven(do, *shlex.split(lines.pop()))
        write_file(path, "".join(f"{line}\n" for line in lines))


def private_mounts(cfg: Settings) -> None:
    """DIR is at /run/nova.py, libvirt and network namespaces are the cloud's own: for nova.py and for all it starts.

    bootstrap called unshare, so nobody else sees these mounts: there is nothing to undo, the machine's own libvirt is
    never touched, a home folder need not be opened for QEMU, and whoever has HOME mounted is a process of this cloud.
    """
    HOME.mkdir(exist_ok=True)
    do("mount", "--bind", cfg.DIR.resolve(), HOME)
    if cfg.LIBVIRT_TYPE != "kvm" and Path("/dev/kvm").exists():
        # Where the device is there but does not work, libvirt probes QEMU anew at every call: ten seconds an instance.
        write_file(STATE / "no-kvm", "", 0o600)
        do("mount", "--bind", STATE / "no-kvm", "/dev/kvm")
    Path("/run/netns").mkdir(exist_ok=True)
    do("mount", "-t", "tmpfs", "tmpfs", "/run/netns")


def private_libvirt() -> None:
    """The rest of private_mounts; not before packages are installed, whose files belong to the machine."""
    for machine, own in PRIVATE_FOLDERS:
        Path(machine).mkdir(parents=True, exist_ok=True)
        (HOME / own).mkdir(parents=True, exist_ok=True)
        do("mount", "--bind", HOME / own, machine)


def cloud_of(process: int | str) -> str:
    """Which folder (device and path) a process has mounted at HOME; "" where none: no process of any cloud."""
    with contextlib.suppress(OSError):  # it has ended
        mounts = Path(f"/proc/{process}/mountinfo").read_text()
        if found := re.search(rf"(\d+:\d+ \S+) {re.escape(str(HOME))} ", mounts):
            return found[1]
    return ""


def processes() -> list[psutil.Process]:
    """Every process of this cloud, oldest first: those that have DIR at HOME, but for nova.py and who called it."""
    mine, ours = {os.getpid(), *(p.pid for p in psutil.Process().parents())}, cloud_of("self")
    found = [p for p in psutil.process_iter() if ours and p.pid not in mine and cloud_of(p.pid) == ours]
    return sorted(found, key=lambda p: p.pid)


def end_processes(those: list[psutil.Process], seconds: float) -> None:
    """Ask them to end (SIGTERM), wait for so long, and make the rest (SIGKILL), with what they started."""
    for process in those:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(those, timeout=seconds)[1]:
        with contextlib.suppress(psutil.Error):
            log.info("killed: %s", process.cmdline())
            for each in (process, *process.children(recursive=True)):
                each.kill()
    psutil.wait_procs(those, timeout=5)


def session(cfg: Settings) -> int:
    """The process of the screen session with our name, whoever's it is; 0 where there is none."""
    said = ask("screen", "-ls", ok=(0, 1), default="")
    found = re.search(rf"^\s+(\d+)\.{re.escape(cfg.SCREEN_NAME)}\s(?!.*Dead)", said, re.M)
    return int(found[1]) if found else 0


def to_screen(cfg: Settings, *command: object) -> None:
    """Have the session carry out a command of screen's own."""
    do("screen", "-S", f"{session(cfg)}.{cfg.SCREEN_NAME}", "-X", *command)  # the name alone would match longer ones


def open_window(cfg: Settings, service: Service) -> None:
    """Open the service's window: a shell whose first command is the service, so up-arrow starts it again."""
    command = f"keep {service.window} {service.user} {render(service.command, cfg)}"
    file = STATE / f"run/{service.window}.rc"
    file.with_suffix(".died").unlink(missing_ok=True)
    write_file(file, f". {CONF}/window\nhistory -s {shlex.quote(command)}\n{command}\n")
    to_screen(cfg, "screen", "-t", service.window, "bash", "--rcfile", file, "-i")


def last_lines(window: str, count: int = 12) -> tuple[str, ...]:
    """The end of a window's log, without empty lines and colours."""
    text = path.read_text(errors="replace") if (path := STATE / f"log/{window}.log").exists() else ""
    lines = (line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text).splitlines())
    return tuple(line for line in lines if line)[-count:]


def answers(place: str) -> bool:
    """Does somebody answer at this URL, host:port or socket? An API that says no has answered too."""
    try:
        if place.startswith("http"):
            return bool(urllib.request.urlopen(place, timeout=5).status)
        host, _, port = place.partition(":")
        with socket.socket(socket.AF_INET if port else socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect((host, int(port)) if port else place)
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def wait_for_service(cfg: Settings, service: Service, seconds: float = 90) -> None:
    """Its window answers, where it has something to answer with; or a Failure that names it."""
    if place := render(service.answers, cfg):
        wait_for(f"{service.window} ({place})", lambda: answers(place), seconds, service)


@functools.cache
def cloud(cfg: Settings) -> Any:
    """A connection to the running cloud as its admin."""
    import openstack  # here: a second that most verbs need not spend

    files = openstack.config.OpenStackConfig(config_files=[f"{HOME}/clouds.yaml"], secure_files=[], load_envvars=False)
    return openstack.connection.Connection(config=files.get_one("nova"))


# ---- Checks: before anything is changed ----


def address_of(interface: str) -> str:
    """The first IPv4 address of an interface; "" where it has none."""
    return str(netifaces.ifaddresses(interface).get(netifaces.AF_INET, [{}])[0].get("addr", ""))


def settings_from(environ: dict[str, str], folder: str = "nova") -> Settings:
    """Read every setting, once, and refuse what makes no sense: Failure with code 2."""
    chosen: dict[str, Any] = {}
    for row in fields(Settings):
        value: Any = environ.get(row.name, "") if row.name != "DIR" else ""
        if not value:
            continue
        if isinstance(row.default, bool):
            if value not in ("0", "1"):
                raise Failure(f"{row.name}={value}: say 0 or 1", code=2)
            value = value == "1"
        elif row.name in CHOICES and value not in CHOICES[row.name]:
            raise Failure(f"{row.name}={value}: it can be {', '.join(CHOICES[row.name])}", code=2)
        if reason := REFUSED.get((row.name, value)) or REFUSED.get((row.name, ...)):
            raise Failure(f"{row.name}={environ[row.name]}: {reason}", code=2)
        chosen[row.name] = value
    return checked(Settings(DIR=Path(folder).absolute(), **chosen))


def checked(cfg: Settings) -> Settings:
    """The same settings with what was left empty found out, and each value possible on this machine."""
    check_words(cfg)
    check_ranges(cfg)
    default: Any = netifaces.gateways().get("default", {})
    interface = cfg.INTERFACE or str(default.get(netifaces.AF_INET, ("", ""))[1])
    host_ip = cfg.HOST_IP or (address_of(interface) if interface else "")
    own = sorted(filter(None, map(address_of, netifaces.interfaces())))
    if interface and not host_ip:
        raise Failure(f"INTERFACE={interface}: it has no IPv4 address; set HOST_IP to one of {', '.join(own)}", code=2)
    if not host_ip:
        raise Failure(f"no default route, so no HOST_IP to find: set HOST_IP to one of {', '.join(own)}", code=2)
    if host_ip not in own:
        raise Failure(f"HOST_IP={host_ip}: not an address of this machine; it has {', '.join(own)}", code=2)
    return replace(cfg, INTERFACE=interface, HOST_IP=host_ip)


# setting,          what it may look like,         in words
WORDS = (
    ("SCREEN_NAME",    r"[A-Za-z0-9_-]{1,30}",        "letters, digits, - and _ only, 30 at most"),
    ("DIR",            r"/[\w./-]*",                  "letters, digits, . _ - and / only; services would trip over others"),
    *((secret,         r"([A-Za-z0-9_.~-]{8,72})?",   "8 to 72 of A-Z a-z 0-9 _ . ~ -, since it stands in URLs and files")
      for secret in SECRETS),
)  # fmt: skip


def check_words(cfg: Settings) -> None:
    """Failure for what could not stand where it is going to stand."""
    for name, form, words in WORDS:
        if not re.fullmatch(form, str(getattr(cfg, name)), re.ASCII):
            shown = name if name in SECRETS else f"{name}={getattr(cfg, name)}"
            raise Failure(f"{shown}: {words}", code=2)
    if cfg.INTERFACE and cfg.INTERFACE not in netifaces.interfaces():
        raise Failure(f"INTERFACE={cfg.INTERFACE}: this machine has {', '.join(netifaces.interfaces())}", code=2)


def prompted(cfg: Settings, verb: str) -> Settings:
    """The same settings with what the user types (-p) for each secret that is neither in the environment nor known yet."""
    if verb not in ("install", "run", "run_detached"):
        raise Failure(f"{verb} makes no passwords: it does not take -p", code=2)
    known, typed = passwords(cfg.DIR / "state"), dict[str, Any]()
    try:
        open("/dev/tty").close()
        for name in (name for name in SECRETS if not getattr(cfg, name) and name not in known):
            typed[name] = getpass.getpass(f"{name} (nothing: generated): ")
            check_words(replace(cfg, **typed))
            if typed[name] and getpass.getpass(f"{name} once more: ") != typed[name]:
                raise Failure(f"{name}: that was not the same twice", code=2)
    except (OSError, EOFError):
        raise Failure("-p asks at a terminal, and there is none", "set the variables instead: README.md", code=2) from None
    return replace(cfg, **typed)


SPECIAL = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")  # this net, loopback, link-local, multicast and above


def check_ranges(cfg: Settings) -> None:
    """FLOATING_RANGE and FIXED_RANGE: valid, large enough, apart from each other and from the machine's routes."""
    networks = {}
    for name, least in (("FLOATING_RANGE", 29), ("FIXED_RANGE", 28)):
        try:
            networks[name] = ipaddress.IPv4Network(getattr(cfg, name))
        except ValueError as error:
            raise Failure(f"{name}={getattr(cfg, name)}: not a range of IPv4 addresses ({error})", code=2) from None
        if special := [each for each in SPECIAL if networks[name].overlaps(ipaddress.IPv4Network(each))]:
            raise Failure(f"{name}={networks[name]}: overlaps {special[0]}, which is not for machines", code=2)
        if networks[name].prefixlen > least:
            raise Failure(f"{name}={networks[name]}: too small; /{least} is the least", code=2)
    if networks["FLOATING_RANGE"].overlaps(networks["FIXED_RANGE"]):
        raise Failure(f"FLOATING_RANGE={cfg.FLOATING_RANGE}: overlaps FIXED_RANGE={cfg.FIXED_RANGE}", code=2)
    for name, network in networks.items():
        for route, interface in routes():
            if interface != "br-ex" and route.prefixlen and route.overlaps(network):
                raise Failure(f"{name}={network}: this machine has a route to {route} through {interface}", code=2)


def settings_of_run(folder: str) -> Settings:
    """What the cloud in this folder was made with: taking down must not depend on how the machine looks by now."""
    known = json.loads(path.read_text()) if (path := Path(folder) / "state/settings.json").exists() else {}
    return Settings(DIR=Path(folder).absolute(), **{row.name: known[row.name] for row in fields(Settings) if row.name in known})


def routes() -> list[tuple[ipaddress.IPv4Network, str]]:
    """The machine's IPv4 routes and their interfaces, from /proc: ip(8) may not be there yet."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    places = [(int(row[1], 16).to_bytes(4, "little"), int(row[7], 16).bit_count()) for row in rows]
    return [(ipaddress.IPv4Network(place), row[0]) for place, row in zip(places, rows, strict=True)]


def distribution() -> dict[str, Any]:
    """This distribution's row of conf/packages.toml, with the packages of every one; Failure for one it does not know."""
    release = platform.freedesktop_os_release()
    name = f"{release['ID']}-{release.get('VERSION_ID')}"
    table = tomllib.loads((HERE / "conf/packages.toml").read_text())
    if name not in table["distributions"]:
        known = ", ".join(table["distributions"])
        raise Failure(f"this is {name}, and conf/packages.toml knows {known}", "add a row of its names there")
    return {**table, **table["distributions"][name]}


def packages(cfg: Settings) -> set[str]:
    """The names of the packages that these settings ask for."""
    here = distribution()
    asked = [names for setting, names in here["only_with"].items() if getattr(cfg, setting) not in (False, "", "0")]
    return {name for names in (here["packages"], *asked) for name in names}


def check_machine(cfg: Settings) -> None:
    """Memory, disk, ports, distribution: everything that would end a run half-way, told before it begins."""
    distribution()
    if platform.machine() != "x86_64":
        raise Failure(f"this machine is a {platform.machine()}: the test image was made for x86_64 only")
    if not Path("/dev/net/tun").exists():
        raise Failure("no /dev/net/tun: instances could not be wired", "in a container: pass that device in")
    if cfg.LIBVIRT_TYPE == "kvm" and not Path("/dev/kvm").exists():
        raise Failure("LIBVIRT_TYPE=kvm: this machine has no /dev/kvm", "use qemu")
    if (free := psutil.virtual_memory().available) < 3 << 30:
        raise Failure(f"{free / 2**30:.1f} GiB of memory free, and a cloud needs 3", "end other programs first")
    needed = 1 if (cfg.DIR / "state/env/made-from").exists() else 4
    place = next(folder for folder in (cfg.DIR, *cfg.DIR.parents) if folder.exists())
    if (free := shutil.disk_usage(place).free) < needed << 30:
        raise Failure(f"{free / 2**30:.1f} GiB of disk free at {place}, and a cloud needs {needed}", "make room first")
    check_ports(cfg)
    if taken := {"br-int", "br-ex", "ovs-netdev", "ovs-system"} & set(netifaces.interfaces()):
        raise Failure(f"this machine has an interface {taken.pop()}, and a cloud makes its own", "remove it first")


def check_ports(cfg: Settings) -> None:
    """Every port that a service will listen on is free."""
    places = " ".join(render(service.answers, cfg) for service in rows(cfg, SERVERS, CONTROL, WORKERS))
    wanted = {int(port) for port in re.findall(r":(\d+)", places)} | {PATHS["RABBIT_DIST_PORT"], PATHS["EPMD_PORT"]}
    for connection in psutil.net_connections("tcp"):
        port = connection.laddr.port if connection.laddr else 0
        if connection.status == psutil.CONN_LISTEN and port in wanted:
            name = psutil.Process(connection.pid).name() if connection.pid else "a program that cannot be seen"
            dir = cloud_of(connection.pid).partition(" ")[2] if connection.pid else ""
            whose = f"the cloud in {dir}" if dir else f"{name}, pid {connection.pid}"
            raise Failure(f"port {port} is in use by {whose}", "end that first")


# ---- branch ----


def branch(cfg: Settings, source: str = "") -> None:
    """Put nova's source into DIR: there it runs, edit it there."""
    if source not in ("", "pypi:nova"):
        raise Failure(f"SOURCE {source}: only pypi:nova so far", code=2)
    if lost := changed_files():
        what = f"{len(lost)} changed files in {cfg.DIR} would be lost: {', '.join(lost[:5])}"
        raise Failure(f"Refusing to branch ({what})", f"keep what you need, remove {cfg.DIR}/state/tree.json, branch again")
    with step("Fetch nova's source"):
        file = locked("nova", r"\.tar\.gz$")
        fresh, packed = STATE / "branch", STATE / "cache/nova.tar.gz"
        packed.parent.mkdir(exist_ok=True)
        packed.write_bytes(download(file["url"], file["hash"]))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        do("tar", "--extract", "--no-same-owner", "--file", packed, "--directory", fresh)
    with step(f"Put it into {cfg.DIR}"):
        put_tree(next(fresh.iterdir()))


TREE = STATE / "tree.json"  # {"whole": bool, "top": names in DIR, "files": {path in DIR: SHA-256 as branched}}


def tree() -> dict[str, Any]:
    """What branch put into DIR."""
    return dict(json.loads(TREE.read_text())) if TREE.exists() else {"whole": False, "top": [], "files": {}}


def put_tree(fresh: Path) -> None:
    """Replace the tree in DIR by `fresh`, leaving what nova.py keeps beside it, and note what each file was."""
    names = sorted(path.name for path in fresh.iterdir())
    both = sorted({*names, *tree()["top"]})
    write_file(TREE, json.dumps({"whole": False, "top": both, "files": {}}))  # cut off here, branch begins again
    for old in (HOME / name for name in both):
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(missing_ok=True)
    for path in fresh.rglob("*"):
        give(path, "caller")
    for path in fresh.iterdir():
        path.rename(HOME / path.name)
    files = {str(path.relative_to(HOME)): digest(path) for path in tree_files()}
    write_file(TREE, json.dumps({"whole": True, "top": names, "files": files}))


def tree_files() -> list[Path]:
    """The tree's files, but for what Python makes by itself."""
    tops = [HOME / name for name in tree()["top"]]
    files = [path for top in tops for path in (top, *top.rglob("*")) if path.is_file()]
    return [path for path in files if path.suffix != ".pyc" and ".egg-info" not in str(path)]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changed_files() -> list[str]:
    """The tree's files that are not as branch left them: changed, or new."""
    known = tree()
    now = {str(path.relative_to(HOME)): digest(path) for path in tree_files()} if known["whole"] else {}
    return sorted(name for name, was in now.items() if known["files"].get(name) != was)


# ---- install ----


def install(cfg: Settings) -> None:
    """Everything a cloud needs: packages, OpenStack's environment, databases, image. Goes on where it stopped."""
    refuse_if_running(cfg)
    end_what_was_left(cfg)
    check_machine(cfg)
    if not tree()["whole"]:
        branch(cfg)
    in_parallel(lambda: install_packages(packages(cfg)), install_openstack)
    private_libvirt()
    make_users()
    make_folders(cfg)
    write_config(cfg)
    in_parallel(lambda: make_databases(cfg), make_image)


def install_packages(names: set[str]) -> None:
    """One apt transaction for what is missing; services that packages bring do not start, now or at the next boot."""
    missing = sorted(names - installed_packages())
    if not missing and not INSTALLED_BEFORE.exists():
        return
    apt = ("apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3", "-qq")
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    with step(f"Install {len(missing)} packages and what they need"), no_services():
        wait_for("dpkg (another program is installing packages)", dpkg_is_free, 300)
        do("dpkg", "--configure", "-a", env=quiet)  # what a call that was cut off left half-way
        do(*apt, "update", hint=NETWORK)
        do(*apt, "install", "-y", "--no-install-recommends", "--no-remove", *missing, env=quiet, hint=NETWORK)


def installed_packages() -> set[str]:
    """The names of the machine's packages."""
    lines = ask("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n").splitlines()
    return {line.split()[1] for line in lines if line.startswith("installed ")}


def dpkg_is_free() -> bool:
    """Raises BlockingIOError while somebody else has dpkg's lock."""
    with open("/var/lib/dpkg/lock-frontend", "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


POLICY = Path("/usr/sbin/policy-rc.d")
NO_SERVICES = "#!/bin/sh\n# written by nova.py while it installs packages\nexit 101\n"
INSTALLED_BEFORE = STATE / "installed-before"  # there while packages are being installed: a call that was cut off is seen


@contextlib.contextmanager
def no_services() -> Iterator[None]:
    """Packages start their services and enable them for the next boot; the cloud starts its own, so neither here."""
    if not INSTALLED_BEFORE.exists():
        write_file(INSTALLED_BEFORE, "\n".join(installed_packages()))
    if not POLICY.exists():
        write_file(POLICY, NO_SERVICES, 0o755)
    try:
        yield
    finally:
        remove_policy()
    new = installed_packages() - set(INSTALLED_BEFORE.read_text().split())
    units = re.findall(r"/systemd/system/([^/\s]+)$", ask("dpkg-query", "--listfiles", *sorted(new)), re.M) if new else []
    for unit in units:
        if list(Path("/etc/systemd/system").glob(f"*.*/{unit}")):
            do("deb-systemd-helper", "disable", unit, env={"DPKG_MAINTSCRIPT_PACKAGE": "nova.py"})  # it insists on one
    INSTALLED_BEFORE.unlink()


def remove_policy() -> None:
    """The file that keeps services from starting, when it is ours."""
    if POLICY.exists() and POLICY.read_text() == NO_SERVICES:
        POLICY.unlink()


def install_openstack() -> None:
    """OpenStack's environment from the lock file, with the tree in DIR as its nova."""
    make_once(ENV / "made-from", digest(HERE / "uv.lock") + digest(HOME / "setup.cfg"), make_environment)


def make_environment() -> None:
    """All of it, anew."""
    uv = (TOOL / "uv", "--quiet", "--no-config")
    env = {"UV_SYSTEM_CERTS": "1", "UV_CACHE_DIR": str(STATE / "cache/uv")}
    wanted = STATE / "cache/cloud.txt"
    into = ("--python", ENV, "--no-build-isolation", "--require-hashes", "--requirements", wanted)
    with step("Install OpenStack's environment"):
        # The distribution's python3: its python3-libvirt is built for that one.
        do(*uv, "venv", "--clear", "--relocatable", "--python", "/usr/bin/python3", ENV, env=env)
        for only in (("--only-group", "cloud-build"), ("--only-group", "cloud", "--no-emit-package", "nova")):
            do(*uv, "export", "--frozen", *only, "--output-file", wanted, cwd=HERE, env=env)
            do(*uv, "pip", "install", *into, env=env, hint=NETWORK)
        do(*uv, "pip", "install", "--python", ENV, "--no-build-isolation", "--no-deps", "--editable", HOME, env=env)
        site = next(ENV.glob("lib/python3*/site-packages"))
        (site / "distribution.pth").write_text(f"{STATE}/python3-libvirt\n")
    with step("Compile it"):
        do(ENV / "bin/python", "-m", "compileall", "-q", "-j", "2", site, HOME / "nova")


def make_once(made_from: Path, key: str, make: Callable[[], None]) -> None:
    """Call `make`, unless what it makes was made from the same before; where it was cut off, it makes all anew."""
    if made_from.exists() and made_from.read_text() == key:
        return
    made_from.unlink(missing_ok=True)
    make()
    write_file(made_from, key)


def make_users() -> None:
    """The users that own the cloud's processes."""
    for user in (USER, GUEST_USER):
        if not ask("getent", "passwd", user, default=""):
            home = ("--no-create-home", "--home-dir", "/nonexistent")
            do("useradd", "--system", "--user-group", *home, "--shell", "/usr/sbin/nologin", user)
    libvirt = STATE / "python3-libvirt"
    shutil.rmtree(libvirt, ignore_errors=True)
    libvirt.mkdir()
    for file in Path("/usr/lib/python3/dist-packages").glob("libvirt*"):
        (libvirt / file.name).symlink_to(file)


def make_folders(cfg: Settings) -> None:
    """Folders, the settings for later, and passwords: what is there stays as it is."""
    for name, owner in FOLDERS:
        (HOME / name).mkdir(parents=True, exist_ok=True)
        give(HOME / name, owner)
        (HOME / name).chmod(0o700 if owner == USER else 0o711)
    plain = {k: v for k, v in asdict(cfg).items() if k not in (*SECRETS, "DIR")}
    write_file(STATE / "settings.json", json.dumps(plain, indent=1))
    known = passwords(STATE)
    for name in SECRETS:
        known[name] = getattr(cfg, name) or known.get(name) or secrets.token_urlsafe(24)
    write_file(STATE / "passwords.json", json.dumps(known, indent=1), 0o600)


def write_config(cfg: Settings) -> None:
    """Every service's configuration from its template."""
    for template, path, mode, owner in rows(cfg, CONFIG_FILES):
        write_file(path, render((HERE / template).read_text(), cfg), mode, owner)
    write_file(CONF / "keep", (HERE / "conf/keep").read_bytes(), 0o755)
    if not cfg.USE_MYSQL:
        install_plugin(next(ENV.glob("lib/python3*/site-packages")))
    for folder in ("fernet", "credential"):
        for name in ("0", "1"):
            if not (STATE / f"keystone/{folder}/{name}").exists():
                write_file(STATE / f"keystone/{folder}/{name}", urlsafe_b64encode(secrets.token_bytes(32)), 0o600, USER)


def install_plugin(site: Path) -> None:
    """The SQLAlchemy plugin of DATABASE_URLS becomes a package of OpenStack's environment; why: conf/sqlite."""
    for name in ("nova_py_sqlite.py", "nova_py_sqlite-1.dist-info/entry_points.txt"):
        (site / name).parent.mkdir(exist_ok=True)
        write_file(site / name, (HERE / "conf/sqlite" / name).read_bytes())


def make_databases(cfg: Settings) -> None:
    """Filled databases, made once and copied by every run: their content depends on what `key` is made of alone."""
    versions = [digest(path) for path in sorted((HOME / "nova/db").rglob("*.py"))]
    chosen = [values(cfg)[name] for name in ("HOST_IP", "ADMIN_PASSWORD", "SERVICE_PASSWORD", "CELL")]
    tables = rows(cfg, DATABASES, ENDPOINTS)
    parts = (digest(HERE / "uv.lock"), versions, chosen, ask("mariadbd", "--version"), tables)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    make_once(kept_databases(cfg).with_suffix(".made-from"), key, lambda: fill_databases(cfg))


def kept_databases(cfg: Settings) -> Path:
    """Where the filled ones are; those of USE_MYSQL=0 beside those of USE_MYSQL=1, so that both stay."""
    return STATE / "cache" / ("mysql" if cfg.USE_MYSQL else "sqlite")


def fill_databases(cfg: Settings) -> None:
    """A server for the time of it, and each database's own commands side by side; then out of the services' way."""
    place, kept = STATE / "databases", kept_databases(cfg)
    shutil.rmtree(kept, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    for folder in (place, place / "sqlite"):
        folder.mkdir(0o700)
        give(folder, USER)
    with step("Make the databases"):
        empty = ("--auth-root-authentication-method=socket", "--skip-test-db")
        do("mariadb-install-db", "--no-defaults", f"--datadir={place}/mysql", *empty, user=USER)
        with started(cfg, SERVICES["mysql"], "--innodb-flush-log-at-trx-commit=0"):
            in_parallel(*(functools.partial(fill_database, cfg, *row) for row in rows(cfg, DATABASES)))
            with started(cfg, SERVICES["keystone"]):
                register_services(cfg)
    place.rename(kept)


@contextlib.contextmanager
def started(cfg: Settings, service: Service, *more: str) -> Iterator[None]:
    """A service for the length of a with, without a window."""
    out = STATE / f"log/{service.window}-install.log"
    user = f"setpriv --reuid={service.user} --regid={service.user} --init-groups"
    line = f". {CONF}/window; exec {user} {render(service.command, cfg)} {' '.join(more)}"
    log.debug("+ bash -c %s", shlex.quote(line))
    options: Any = dict(_in="", _out=str(out), _err_to_out=True, _tty_out=False, _bg=True, _bg_exc=False)
    process = sh.Command("bash")("-c", line, **options)
    try:
        wait_for(service.window, lambda: answers(render(service.answers, cfg)), 60)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, sh.ErrorReturnCode):
            process.terminate()
            process.wait()


def register_services(cfg: Settings) -> None:
    """keystone's catalog: each service's user and its address."""
    identity = cloud(cfg).identity
    project = identity.create_project(name="service", domain_id="default")
    roles = [identity.find_role(name) or identity.create_role(name=name) for name in ("admin", "service")]
    for name, kind, url in rows(cfg, ENDPOINTS):
        user = identity.create_user(name=name, domain_id="default", password=values(cfg)["SERVICE_PASSWORD"])
        for role in roles:
            identity.assign_project_role_to_user(project, user, role)
        service = identity.create_service(name=name, type=kind)
        for interface in ("public", "internal"):
            where = dict(interface=interface, url=render(url, cfg), region_id="RegionOne")
            identity.create_endpoint(service_id=service.id, **where)
    cloud.cache_clear()  # its token names the catalog as it was


def fill_database(cfg: Settings, names: tuple[str, ...], commands: tuple[str, ...]) -> None:
    """Create the databases and run the commands that make their tables."""
    # keystone-manage bootstrap reads these: a password has no place in argv.
    urls = {f"OS_BOOTSTRAP_{kind}_URL": f"http://{cfg.HOST_IP}:5000/v3" for kind in ("PUBLIC", "INTERNAL")}
    env = {**urls, "OS_BOOTSTRAP_REGION_ID": "RegionOne", "OS_BOOTSTRAP_PASSWORD": values(cfg)["ADMIN_PASSWORD"]}
    for name in names if cfg.USE_MYSQL else {"neutron"} & {*names}:  # SQLite makes its files by itself
        do("mariadb", "--no-defaults", f"--socket={STATE}/mysql/sock", text=f"CREATE DATABASE {name};")
    for command in commands:
        program, *arguments = shlex.split(render(command, cfg))
        do(ENV / "bin" / program, *arguments, user=USER, env=env, cwd=STATE)


def make_image() -> None:
    """The three parts of ami-tty, from the distribution's packages."""
    sources = HERE / "conf/ami-tty"

    def build() -> None:
        with step("Build the image ami-tty"):
            do(sys.executable, sources / "build.py", HOME / "images", distribution()["kernel"], hint=NETWORK)

    key = "".join(digest(path) for path in sorted(sources.iterdir()) if path.is_file())
    make_once(HOME / "images/made-from", key, build)


# ---- run ----


def run(cfg: Settings) -> None:
    """Run a cloud for as long as its session lasts, then take it down."""
    with only_one("run"):
        run_detached(cfg)
        to_screen(cfg, "select", "test")
    with contextlib.suppress(sh.ErrorReturnCode):
        sh.Command("screen")("-S", f"{session(cfg)}.{cfg.SCREEN_NAME}", "-x", _fg=True)
    if session(cfg):
        say(f"The cloud stays. To come back: sudo screen -x {cfg.SCREEN_NAME}")
        say("To end it: sudo python3 nova.py terminate, then clean")
        return
    with only_one("run"):
        terminate(cfg)
        clean(cfg)


def run_detached(cfg: Settings) -> None:
    """Start a new, empty cloud: every service in its own screen window."""
    install(cfg)
    empty_databases(cfg)
    start_session(cfg)
    create_bridges(cfg)
    start_control(cfg)
    start_workers(cfg)
    in_parallel(lambda: create_flavors(cfg), lambda: create_networks(cfg), lambda: upload_image(cfg))
    wait_for_hosts(cfg)
    smoke_test(cfg)
    (STATE / "run/up").touch()
    say_how_to_use(cfg)


def refuse_if_running(cfg: Settings) -> None:
    """nova.sh's refusal: a session of this name is there. One that a run of ours left half-made is no reason."""
    name, found, ours = cfg.SCREEN_NAME, session(cfg), processes()
    if ours and (STATE / "run/up").exists():
        name = settings_of_run(str(HOME)).SCREEN_NAME
        way = f"attach to it with: sudo screen -x {name}\n  end it with: sudo python3 nova.py terminate, then clean"
        raise Failure(f"screen named '{name}' already exists!", way)
    if found and found not in [process.pid for process in ours]:
        whose = cloud_of(found).partition(" ")[2] or "another program"
        raise Failure(f"screen named '{name}' already exists, of {whose}!", "choose another SCREEN_NAME, or end that one")


def end_what_was_left(cfg: Settings) -> None:
    """A run that was cut off, or a cloud that was cleaned but not scrubbed: take the rest down first."""
    if processes() or (STATE / "record").exists():
        with step("Take down what an earlier run left"):
            wait_for("dpkg (it is at work)", dpkg_is_free, 300)  # an install that was cut off: not in the middle
            take_down(cfg)
            remove_traces()


def empty_databases(cfg: Settings) -> None:
    """Every run is a fresh cloud: databases as install made them, no instances, no networks, no messages."""
    with step("Empty the databases"):
        for name in EMPTIED:
            for path in (HOME / name).glob("*"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in (STATE / "log").glob("*.log"):
            if path.name != "nova.log":
                path.unlink()
        copy = ("cp", "--archive", "--reflink=auto", "--sparse=always", "--no-target-directory")
        do(*copy, kept_databases(cfg), STATE / "databases")
        for schema, name in (("openvswitch/vswitch", "conf"), ("ovn/ovn-nb", "ovnnb"), ("ovn/ovn-sb", "ovnsb")):
            do("ovsdb-tool", "create", STATE / f"ovs/{name}.db", f"/usr/share/{schema}.ovsschema", user=USER)


def start_session(cfg: Settings) -> None:
    """The screen session, and in it what OpenStack stands on."""
    with step("Start MariaDB, RabbitMQ, Open vSwitch, OVN and libvirt"):
        shell = ("bash", "--rcfile", CONF / "test", "-i")
        do("screen", "-c", CONF / "screenrc", "-d", "-m", "-S", cfg.SCREEN_NAME, "-t", "test", *shell)
        wait_for("screen", lambda: session(cfg), 10)
        if cfg.SCREEN_STATUS:
            to_screen(cfg, "hardstatus", "alwayslastline", "%-Lw%{= BW}%50>%n%f* %t%{-}%+Lw%< %= %H")
        for service in rows(cfg, SERVERS):
            open_window(cfg, service)
        for service in rows(cfg, SERVERS):
            if service.window != "rabbit":  # it is slow, and nobody needs it before the workers
                wait_for_service(cfg, service)


def create_bridges(cfg: Settings) -> None:
    """OVN's integration bridge, and br-ex, where this machine is the gateway of the floating addresses."""
    with step("Create the bridges"):
        if not has_kernel_datapath():
            forgiven(do, "modprobe", "openvswitch")
        for device in ("br-ex", "br-int", "ovs-netdev"):
            record("ip", "link", "delete", device)
        if has_kernel_datapath():
            record("ovs-dpctl", "del-dp", "system@ovs-system")
        bridges = shlex.split(render((HERE / "conf/bridges.tmpl").read_text(), cfg), comments=True)
        do("ovs-vsctl", f"--db={PATHS['OVSDB']}", *bridges)
        floating = ipaddress.IPv4Network(cfg.FLOATING_RANGE)
        do("ip", "address", "replace", f"{floating[1]}/{floating.prefixlen}", "dev", "br-ex")
        do("ip", "link", "set", "br-ex", "up")
        if (was := ask("sysctl", "-n", "net.ipv4.ip_forward")) != "1":
            record("sysctl", "-qw", f"net.ipv4.ip_forward={was}")
            do("sysctl", "-qw", "net.ipv4.ip_forward=1")
        record("nft", "delete", "table", "ip", "nova_py")
        do("nft", "-f", CONF / "nat.nft")


def has_kernel_datapath() -> bool:
    """Does this kernel have Open vSwitch? Many containers' and micro-VMs' kernels do not; then it runs in userspace."""
    return Path("/sys/module/openvswitch").exists()


def start_control(cfg: Settings) -> None:
    """The APIs and what works for them."""
    with step("Start the APIs"):
        for service in rows(cfg, CONTROL):
            open_window(cfg, service)
        for service in rows(cfg, CONTROL):
            wait_for_service(cfg, service)


def start_workers(cfg: Settings) -> None:
    """What asks the others when it starts."""
    with step("Start scheduler, compute and network agents"):
        wait_for_service(cfg, SERVICES["rabbit"])
        for service in rows(cfg, WORKERS):
            open_window(cfg, service)


def create_flavors(cfg: Settings) -> None:
    """nova.sh's sizes."""
    with step("Create flavors"):
        for name, number, ram, disk, cpus in FLAVORS:
            cloud(cfg).compute.create_flavor(name=name, id=number, ram=ram, disk=disk, vcpus=cpus)


def create_networks(cfg: Settings) -> None:
    """private, public and the router between them; ping and ssh come in."""
    with step("Create networks"):
        network = cloud(cfg).network
        floating = ipaddress.IPv4Network(cfg.FLOATING_RANGE)
        outside = dict(provider_network_type="flat", provider_physical_network="public", is_router_external=True)
        public = network.create_network(name="public", **outside)
        pool = dict(start=str(floating[2]), end=str(floating[-2]))
        addresses = dict(cidr=cfg.FLOATING_RANGE, gateway_ip=str(floating[1]), allocation_pools=[pool])
        network.create_subnet(name="public", network_id=public.id, ip_version=4, is_dhcp_enabled=False, **addresses)
        private = network.create_network(name="private")
        inside = dict(cidr=cfg.FIXED_RANGE, is_dhcp_enabled=True)
        subnet = network.create_subnet(name="private", network_id=private.id, ip_version=4, **inside)
        router = network.create_router(name="router", external_gateway_info={"network_id": public.id})
        network.add_interface_to_router(router, subnet_id=subnet.id)
        group = next(network.security_groups(name="default", project_id=cloud(cfg).current_project_id))
        for rule in ({"protocol": "icmp"}, {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}):
            network.create_security_group_rule(security_group_id=group.id, direction="ingress", **rule)


def upload_image(cfg: Settings) -> None:
    """Register ami-tty: kernel, ramdisk, root disk."""
    with step("Upload the image"):
        admin, ids = cloud(cfg), dict[str, str]()
        for name, form, file, properties in IMAGE_PARTS:
            known = {key: ids.get(value, value) for key, value in properties.items()}
            with open(HOME / "images" / file, "rb") as data:
                part = dict(disk_format=form, container_format=form, visibility="public", data=data, **known)
                ids[name] = admin.image.create_image(name, **part).id


def wait_for_hosts(cfg: Settings) -> None:
    """Until an instance could be placed and wired."""
    admin, room = cloud(cfg), "/resource_providers?resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"

    def placed() -> object:
        return admin.placement.get(room, microversion="1.17").json()["resource_providers"]

    with step("Wait for the compute host"):
        wait_for("the compute host in a cell", lambda: list(admin.compute.hypervisors()), 90)
        wait_for("the compute host in placement", placed, 60)


def smoke_test(cfg: Settings) -> None:
    """Boot an instance, reach it by ping and by ssh through a floating address, delete it."""
    key, admin = STATE / "run/smoke", cloud(cfg)
    with step("Boot an instance and reach it by ssh"):
        do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "smoke", "-f", key)
        admin.compute.create_keypair(name="smoke", public_key=key.with_suffix(".pub").read_text())
        networks = {name: admin.network.find_network(name).id for name in ("private", "public")}
        port = admin.network.create_port(name="smoke", network_id=networks["private"])
        address = admin.network.create_ip(floating_network_id=networks["public"], port_id=port.id)
        image = admin.image.find_image("ami-tty")
        which = dict(flavor_id=FLAVORS[0][1], image_id=image.id, key_name="smoke", networks=[{"port": port.id}])
        server = admin.compute.create_server(name="smoke", **which)
        wait_for("the instance", lambda: is_active(admin, server), 120)
        where = address.floating_ip_address
        login = ("timeout", 15, "ssh", "-i", key, *shlex.split("-oBatchMode=yes -oConnectTimeout=3 -oLogLevel=ERROR"))
        login += ("-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null")  # the next one at this address is another
        pinged = lambda: " 0% packet loss" in ask("ping", "-c1", "-W1", where, ok=(0, 1))
        wait_for(f"ping of {where}", pinged, 60)
        wait_for(f"ssh to {where}", lambda: ask(*login, f"root@{where}", "hostname", default="") == "smoke", 90)
    with step("Delete it again"):
        admin.compute.delete_server(server)
        wait_for("the instance's end", lambda: not admin.compute.find_server(server.id), 60)
        admin.network.delete_ip(address)
        admin.network.delete_port(port)
        admin.compute.delete_keypair("smoke")


def is_active(admin: Any, server: Any) -> bool:
    """Is the instance running? One that went wrong will not, and says why."""
    now = admin.compute.get_server(server.id)
    if now.status == "ERROR":
        raise Failure(f"instance {now.name}: {(now.fault or {}).get('message')}", "look into the windows compute and scheduler")
    return bool(now.status == "ACTIVE")


def say_how_to_use(cfg: Settings) -> None:
    """What the user wants to know now: what took how long, where everything is, and three lines to try."""
    say("\nSeconds each step took (some went on side by side):")
    for what, seconds in STEPS:
        say(f"  {seconds:6.1f}  {what}")
    say(f"\nThe cloud is up, {time.monotonic() - BEGAN:.0f} s after it was asked for.")
    say(render((HERE / "conf/how-to-use.tmpl").read_text().rstrip(), cfg))


# ---- terminate ----


def terminate(cfg: Settings) -> None:
    """End every instance through the API; where that does not answer, through libvirt."""
    try:
        with step("End the instances"):
            if processes() and answers(f"http://{cfg.HOST_IP}:8774/"):
                delete_everything(cloud(cfg))
    except Failure as failure:
        say(f"The APIs did not end them ({failure}); so libvirt does.")
    destroy_domains()


def delete_everything(admin: Any) -> None:
    """Every project's instances, and every floating address."""
    for server in (servers := list(admin.compute.servers(all_projects=True))):
        admin.compute.delete_server(server, force=True)
    wait_for(f"the end of {len(servers)} instances", lambda: not list(admin.compute.servers(all_projects=True)), 60)
    for address in admin.network.ips():
        admin.network.delete_ip(address)


def destroy_domains() -> None:
    """The domains of this cloud's own libvirt: destroyed and forgotten."""
    if answers("/run/libvirt/libvirt-sock"):
        for name in ask("virsh", "list", "--all", "--name", default="").split():
            forgiven(do, "virsh", "destroy", name)
            forgiven(do, "virsh", "undefine", "--nvram", "--managed-save", name)


# ---- clean ----


def clean(cfg: Settings) -> None:
    """End the session and every process that it started; the machine's own are not touched."""
    with step("End the session and its processes"):
        take_down(cfg)


def take_down(cfg: Settings) -> None:
    """End windows and guests, OpenStack before what it stands on; then whatever of ours is still there."""
    stages = [[s.window for s in CONTROL + WORKERS], [s.window for s in SERVERS]]
    for windows in stages:
        keepers = {int(p.read_text()) for w in windows if (p := STATE / f"run/{w}.pid").exists()}
        end_processes([p for p in processes() if p.pid in keepers], 3)
    if session(cfg) in [p.pid for p in processes()]:
        forgiven(to_screen, cfg, "quit")
    for _ in range(5):  # again, for what one of them started meanwhile
        end_processes(processes(), 1)
    for path in (STATE / "run").glob("*"):
        path.unlink()


# ---- scrub ----


def scrub(cfg: Settings) -> None:
    """Remove what a cloud leaves on the machine; works with no API, no session, no database, and twice."""
    with step("Remove bridges, rules and domains"):
        take_down(cfg)
        remove_traces()


def remove_traces() -> None:
    """Take back what the record names, remove instances' taps, and forget the domains.

    A tap carries our MAC prefix but for its first byte, which libvirt sets to fe where it makes the tap itself.
    """
    remove_policy()
    undo_recorded()
    for device in Path("/sys/class/net").glob("tap*"):
        address = (device / "address").read_text() if (device / "tun_flags").exists() else ""
        if address[2:].startswith(str(PATHS["MAC_PREFIX"])[2:]):
            forgiven(do, "ip", "link", "delete", device.name)
    (STATE / "record").unlink(missing_ok=True)
    for path in (STATE / "libvirt/etc/qemu").glob("*.xml"):
        path.unlink()


# ---- Command line ----


def settings(cfg: Settings) -> None:
    """Print each variable with its value and its meaning; a star where the value was chosen and is not the default."""
    for row in fields(Settings):
        value = int(value) if isinstance(value := getattr(cfg, row.name), bool) else value
        shown = "(set)" if row.name in SECRETS and value else value
        mark = "*" if os.environ.get(row.name) and getattr(cfg, row.name) != row.default else " "
        print(f"{mark} {row.name + '=' + str(shown):34} {row.metadata['meaning']}")


TAKE_DOWN = ("terminate", "clean", "scrub")
VERBS = {f.__name__: f for f in (branch, install, run, run_detached, terminate, clean, scrub, settings)}


def main(arguments: list[str]) -> int:
    """Carry out one verb; returns the exit code: 0 done, 1 failed, 2 usage, 130 Ctrl-C."""
    os.umask(0o022)
    log.setLevel(logging.DEBUG)
    log.addHandler(logging.StreamHandler() if "-v" in arguments else logging.NullHandler())
    verb, *rest = [a for a in arguments if a not in ("-v", "-p")]
    most = {"branch": 2, "settings": 0}.get(verb, 1)
    try:
        if len(rest) > most or any(r.startswith("-") for r in rest):
            raise Failure(f"{verb} does not take {' '.join(rest)}; see: python3 nova.py --help", code=2)
        folder = rest[most - 1] if len(rest) == most and most else "nova"
        cfg = settings_of_run(folder) if verb in TAKE_DOWN else settings_from(dict(os.environ), folder)
        cfg = prompted(cfg, verb) if "-p" in arguments else cfg
        if verb == "settings":
            settings(cfg)
            return 0
        os.environ["no_proxy"] = f"127.0.0.1,{cfg.HOST_IP},{os.environ.get('no_proxy', '')}"
        with contextlib.nullcontext() if verb == "run" else only_one(verb):  # run is not at work while its session is shown
            prepare_folder(cfg, verb)
            VERBS[verb](cfg, *rest[: most - 1])
        return 0
    except Failure as failure:
        return tell_failure(failure)
    except OSError as error:
        log.exception("%s", verb)
        return tell_failure(Failure(str(error)))
    except KeyboardInterrupt:
        running = f"{len(found)} processes of the cloud run; clean ends them" if (found := processes()) else "no service runs"
        print(f"\nnova.py: interrupted; {running}. {verb} can be called again.", file=sys.stderr)
        return 130


def prepare_folder(cfg: Settings, verb: str) -> None:
    """DIR is there, or is made by the verbs that may; its log begins; the private mounts are in place."""
    if verb in TAKE_DOWN and not (cfg.DIR / "state").exists():
        raise Failure(f"no cloud in {cfg.DIR}", f"go to the folder where it was made, or name it: nova.py {verb} DIR")
    if os.path.lexists(state := cfg.DIR / "state") and (state.is_symlink() or state.stat().st_uid != 0):
        raise Failure(f"Refusing to use {cfg.DIR}/state (it is not root's, so it may hold anything)", "remove it first")
    if not (cfg.DIR / "state").exists():
        check_machine(cfg)
        if cfg.DIR.is_dir() and (there := sorted(path.name for path in cfg.DIR.iterdir())):
            raise Failure(f"Refusing to use {cfg.DIR} (it holds {', '.join(there[:5])})", "name a new folder: nova.py VERB DIR")
    try:
        (cfg.DIR / "state").mkdir(parents=True, exist_ok=True)
        start_log(cfg)
    except OSError as error:
        raise Failure(f"cannot use {cfg.DIR} as the cloud's folder: {error.strerror}", "name another: nova.py VERB DIR") from None
    private_mounts(cfg)
    if verb in TAKE_DOWN:
        private_libvirt()


@contextlib.contextmanager
def only_one(verb: str) -> Iterator[None]:
    """Two at once: the second is refused."""
    with open(os.open("/run/nova.py.lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"another nova.py is at work: {lock.read().strip()}", "wait for it, or end it") from None
        lock.truncate(0)
        lock.write(f"{verb}, pid {os.getpid()}\n")
        lock.flush()
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
