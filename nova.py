#!/usr/bin/env python3
"""usage: sudo python3 nova.py [-v] [-p] [--dry-run] VERB [ARGUMENT...]

A real OpenStack Nova on this machine by one command, and back again: nova.sh, for today's OpenStack.

  branch [SOURCE] [DIR]  fetch nova's source into DIR (default: nova)
  install [DIR]          a Debian in DIR, OpenStack's environment, databases, the test image
  run [DIR]              a new cloud, every service in a window of one screen session; taken down when that ends
  run_detached [DIR]     the same in the background: the cloud stays up
  status [DIR] [--json]  windows, APIs, instances, addresses: a table; exit code 0 when all is well
  attach [DIR]           come back to the session (Ctrl-a d leaves it)
  shell [DIR] [COMMAND...]  a shell, or a command, where the cloud's programs are, with novarc sourced
  stop [DIR]             end every process and keep the cloud: users, images, networks, instances, volumes
  start [DIR]            bring that cloud back, also after a reboot: instances that ran run again
  terminate [DIR]        end every instance and every volume
  clean [DIR]            end the session and every process that it started
  scrub [DIR]            remove what a cloud left on the machine: bridges, rules, domains; nothing can be started then
  uninstall [DIR] [--keep-cache]  delete DIR; tell what differs on the machine from before the first run
  settings               every variable with its value and its meaning

run does what is missing first, so one command is enough:  sudo python3 nova.py run
--dry-run shows, as lines for a shell, what the verb would do, and changes nothing.
-v shows every command; all of it is in DIR/state/log/nova.log.  -p asks for the passwords that are not there yet;
without it they are generated.  --yes: run, run_detached and scrub do not ask before they delete instances.
Settings are environment variables: README.md
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import contextlib
import ctypes
import difflib
import fcntl
import functools
import getpass
import hashlib
import importlib
import ipaddress
import json
import logging
import os
import platform
import pwd
import re
import secrets
import selectors
import shlex
import shutil
import signal
import socket
import sqlite3
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

try:
    import tomllib
except ImportError:
    sys.exit("nova.py needs Python 3.11 or newer, as Debian 12 has it")

HERE = Path(__file__).resolve().parent
TOOL = HERE / ".tool"  # nova.py's own environment and the downloads for it
LIBEXEC = HERE / "libexec"  # programs with one job each


# What is ours of the command line: behind shell is a command of the user's.
ARGUMENTS = sys.argv[1 : sys.argv.index("shell") + 1] if "shell" in sys.argv else sys.argv[1:]
DRY_RUN = "--dry-run" in ARGUMENTS  # changes are said and not made
NETWORK = "check the network and the package sources, then repeat: it goes on where it stopped"


class Failure(Exception):
    """What went wrong, in words for the user; `hint` is what to do, `tail` the last lines that the command said."""

    def __init__(self, message: str, hint: str = "", tail: tuple[str, ...] = (), code: int = 1, during: str = "") -> None:
        super().__init__(message)
        self.hint, self.tail, self.code, self.during = hint, tail, code, during


# ---- Bootstrap: from a bare python3 to the environment this module needs ----


def bootstrap() -> None:
    """Start again in nova.py's own environment, made first where missing, and with mounts of its own (private_mounts).

    With sudo a user's packages are out of sight, so the environment is nova.py's own.
    """
    if os.environ.pop("NOVA_PY_PRIVATE", ""):
        return
    made_from, make = TOOL / "made-from", [str(LIBEXEC / "make-tool"), sys.executable]
    if not made_from.exists() or made_from.read_bytes() != (HERE / "uv.lock").read_bytes():
        if DRY_RUN:
            print(f"{shlex.join(make)}  # until then there is nothing to look with")
            sys.exit(0)
        print("Make nova.py's own environment (.tool)", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(make, stderr=subprocess.PIPE, check=False, text=True)
        except KeyboardInterrupt:
            print("nova.py: interrupted; nothing but .tool was begun, and the next call makes it anew", file=sys.stderr)
            sys.exit(130)
        if done.returncode:
            said = tuple(done.stderr.splitlines()[-20:])
            hint = "once with sudo, then without" if "Permission denied" in done.stderr else NETWORK
            sys.exit(tell_failure(Failure(f"cannot make {TOOL}", hint, said)))
    os.environ["NOVA_PY_PRIVATE"] = "1"
    own = [str(TOOL / "env/bin/python"), str(HERE / "nova.py"), *sys.argv[1:]]
    if os.geteuid() == 0:
        own = ["unshare", "--mount", "--propagation", "slave", *own]
    os.execvp(own[0], own)


def tell_failure(failure: Failure) -> int:
    """Print a failure for a person; return the exit code it asks for."""
    lines = [f"nova.py: {failure if failure.code == 1 else legible(failure)}"]
    if failure.during:
        lines.insert(0, f"\nnova.py stopped at: {failure.during}")
    lines += [f"    | {line}" for line in failure.tail]
    lines += [f"  {failure.hint}"] if failure.hint else []
    lines += [f"  everything it did: {LOG_FILE[0]}"] if LOG_FILE and failure.code == 1 else []
    print("\n".join(lines), file=sys.stderr)
    return failure.code


def legible(value: object) -> str:
    """In one line, and nothing that a terminal would obey."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(value))


LOG_FILE: list[Path] = []  # one, once there is a folder
FLAGS = ("-v", "-p", "--dry-run")
VERB_WORDS = re.findall(r"^  (\w+) ", __doc__, re.MULTILINE)

if __name__ == "__main__":
    words = [w for w in ARGUMENTS if w not in (*FLAGS, "--json", "--yes", "--keep-cache")]
    if {"-h", "--help", "help"} & set(words):
        print(__doc__.rstrip())
        sys.exit(0)
    if not words or words[0] not in VERB_WORDS:
        print(f"nova.py: no verb {words[0]!r}\n" if words else "nova.py: which verb?\n", file=sys.stderr)
        print(__doc__.rstrip(), file=sys.stderr)
        sys.exit(2)
    if os.geteuid() != 0 and words[0] != "settings":
        print(f"nova.py: {words[0]} needs root: sudo python3 nova.py {shlex.join(sys.argv[1:])}", file=sys.stderr)
        sys.exit(1)
    bootstrap()

import netifaces  # noqa: E402
import psutil  # noqa: E402
import sh  # noqa: E402
from rich import progress  # noqa: E402
from rich.console import Console  # noqa: E402

# ---- Settings: nova.sh's environment variables, name, default and meaning side by side ----


def setting(default: Any, meaning: str, *choices: str) -> Any:
    """One row of the table below: its environment variable is its name."""
    return field(default=default, metadata={"meaning": meaning, "choices": choices})


def secret(meaning: str) -> Any:
    """One that is given, prompted for (-p) or generated; kept in passwords.json and KEPT alone."""
    return field(default="", metadata={"meaning": f"{meaning}; generated when empty", "generated": True})


# fmt: off
@dataclass(frozen=True)
class Settings:
    """What the user asked for. Made once, by settings_from; nothing else reads the environment."""

    DIR: Path              = setting(Path("nova"), "the cloud's folder: nova's source, instances, novarc (an argument)")
    SCREEN_NAME: str       = setting("nova",       "name of the screen session")
    SCREEN_STATUS: bool    = setting(True,         "1: a status line that names the windows")
    USE_MYSQL: bool        = setting(True,         "1: a private MariaDB; 0: SQLite, but for neutron")
    MYSQL_PASS: str        = secret("password of that MariaDB")
    ADMIN_PASSWORD: str    = secret("password of the cloud's user admin")
    SERVICE_PASSWORD: str  = secret("password of the services' users")
    RABBIT_PASS: str       = secret("password of the services at RabbitMQ")
    METADATA_SECRET: str   = secret("what neutron's metadata agent shows to nova")
    VOLUMES_SECRET: str    = secret("what the key of encrypted volumes is made of")
    EC2_ACCESS_KEY: str    = secret("admin's key to S3 and EC2")
    EC2_SECRET_KEY: str    = secret("what belongs to that key")
    INTERFACE: str         = setting("",           "interface to the outside; the one of the default route when empty")
    HOST_IP: str           = setting("",           "address of the APIs; the address of INTERFACE when empty")
    FLOATING_RANGE: str    = setting("10.6.0.0/27", "floating addresses; the first is this machine's own")
    FIXED_RANGE: str       = setting("10.0.0.0/24", "addresses of the network private")
    FIXED_RANGE_V6: str    = setting("fd6e:6f76:6170::/48", "IPv6 addresses; its first /64 is the network private's")
    INSTANCES_PATH: str    = setting("",           "where instances' disks are; DIR/instances when empty")
    LOCK_PATH: str         = setting("",           "where services keep their locks; DIR/state/locks when empty")
    LIBVIRT_TYPE: str      = setting("qemu",       "qemu; or kvm; or lxc: containers", "qemu", "kvm", "lxc", "uml")
    NET_MAN: str           = setting("VlanManager", "a VLAN a project; or FlatDHCPManager; or FlatManager: no DHCP",
                                     "VlanManager", "FlatDHCPManager", "FlatManager")
    FLAT_INTERFACE: str    = setting("",           "spare interface that joins the bridge br100")
    VOLUMES_SIZE: str      = setting("0",          "GiB for volumes; 0: no volumes")
    CONSOLES: bool         = setting(False,        "1: instances' consoles in the browser and by websocket")
    IMAGE: str             = setting("",           "path or URL of an image (qcow2 or raw) to add; debian: one built here")
    TEST: str              = setting("0",          "1: run a part of nova's unit tests first; all: all of them", "0", "1", "all")
    USE_IPV6: bool         = setting(False,        "1: IPv6 beside IPv4")
    USE_SWIFT: bool        = setting(False,        "1: object storage: swift, with S3 on port 3333")
    USE_EC2: bool          = setting(False,        "1: the EC2 API on port 8773; it needs volumes")
    USE_LDAP: bool         = setting(False,        "1: users in OpenLDAP, or in the directory at LDAP_URL")
    USE_OPENDJ: bool       = setting(False,        "1: users in OpenDJ")
    OPENDJ_PACKAGE: str    = setting("",           "path of OpenDJ's .zip or .deb")
    LDAP_URL: str          = setting("",           "a directory that is there already: ldap://HOST[:PORT] or ldaps://...")
    LDAP_TREE: str         = setting("dc=nova,dc=sh", "what users are below in the directory")
    LDAP_PASSWORD: str     = secret("password of cn=admin,LDAP_TREE")
    DEMO_PASSWORD: str     = secret("password of demo, alt_demo, the readers, and the directory's user demo")
    QUOTAS: bool           = setting(False,        "1: upstream's default quotas; 0: instances, cores and memory without limit")
    DEBIAN_MIRROR: str     = setting("",           "where Debian's packages come from; the machine's own mirror when empty")
    USE_KSM: bool          = setting(True,         "1: where the kernel can, it keeps equal pages of the cloud's memory once")

    @property
    def VOLUMES_LVM(self) -> bool:
        """Not a setting: are volumes nova.sh's, LVM by iSCSI, or files, because this kernel cannot?"""
        return asked_for(self, "VOLUMES_SIZE") and has_iscsi()

    @property
    def KSM(self) -> bool:
        """Not a setting: may this kernel be asked to keep equal pages once? Who asked stays so through exec since 6.7."""
        return self.USE_KSM and os.access(KSM / "run", os.W_OK) and (KSM / "smart_scan").exists()

    @property
    def DIRECTORY(self) -> str:
        """Not a setting: where the users of the domain ldap are, if there is one: slapd, opendj or yours."""
        return "opendj" if self.USE_OPENDJ else "" if not self.USE_LDAP else "yours" if self.LDAP_URL else "slapd"


# setting,           beside ("": in any case),  cannot be, because
IMPOSSIBLE = (
    ("LIBVIRT_TYPE=uml", "",                    "libvirt (5.0) and nova (23.0) dropped user-mode Linux; use qemu"),
    ("LIBVIRT_TYPE=lxc", "CONSOLES",            "CONSOLES=1 has nothing to show: a container has neither VNC nor a serial port"),
    ("LIBVIRT_TYPE=lxc", "VOLUMES_SIZE",        "no VOLUMES_SIZE: nova attaches volumes by a bus that libvirt's containers lack"),
    ("LIBVIRT_TYPE=lxc", "NET_MAN=FlatManager", "NET_MAN=FlatManager puts addresses on config drives; containers get none"),
    ("LIBVIRT_TYPE=lxc", "IMAGE=debian",        "no IMAGE=debian: it boots as a machine, with its own kernel"),
    ("USE_EC2",          "VOLUMES_SIZE=0",      "ec2-api asks for volumes whatever it tells of; set VOLUMES_SIZE, in GiB"),
    ("USE_OPENDJ",       "USE_LDAP",            "with USE_LDAP=1 there would be two directories; choose one"),
)
# setting,           needs this of the machine, because
NEEDED = (
    ("LIBVIRT_TYPE=kvm", "/dev/kvm",            "KVM is nowhere else; use qemu"),
    ("LIBVIRT_TYPE=lxc", "/dev/loop-control",   "a container's root is mounted from a file; use qemu"),
    ("VOLUMES_SIZE",     "/dev/loop-control",   "a file as a disk is what bounds volumes"),
)
SECRETS = tuple(row.name for row in fields(Settings) if "generated" in row.metadata)
CHOICES = {row.name: row.metadata["choices"] for row in fields(Settings) if row.metadata.get("choices")}

# ---- Tables: users, ports, paths ----

USER       = "nova-py"       # owns every process that does not need root
PRIVSEP    = "nova-py:nova-py-root"  # the same, in the group that may ask for it: conf/sudoers.tmpl, and libvirt's socket
GUEST_USER = "libvirt-qemu"  # owns the instances' QEMUs; libvirt does not start where nobody has this name
# For what reads and writes volumes: libvirt gives their files to guests, and those below a snapshot it does not take back.
DISKS      = f"{PRIVSEP},{GUEST_USER}"
ROOT       = "root"          # for what wires networks and starts instances
# Their numbers, and that of the group of PRIVSEP, in ROOTFS, which nobody on the machine may have (check_machine).
NUMBERS    = {USER: 28272, GUEST_USER: 28273, "nova-py-root": 28274}

# The cloud's folder as its processes see it (private_mounts): short enough for sockets, the same wherever DIR is.
HOME  = Path("/run/nova.py")
STATE = HOME / "state"
ROOTFS = STATE / "root"  # a Debian: the root file system of the cloud's programs, which have HOME in it as well
CLONE = Path("/srv/nova.py")  # in there, this clone
ENV   = STATE / "env"
CLIENT = STATE / "client"  # the openstack command, by the machine's Python
EC2   = STATE / "ec2"  # an environment of its own: ec2-api's last release wants older libraries
CONF  = STATE / "conf"
DOMAINS = ROOTFS / "etc/libvirt"  # below it, a file for each instance
KEPT  = STATE / "kept.json"  # there while DIR has a whole cloud, up or not: what it was made with, for start
KSM   = Path("/sys/kernel/mm/ksm")  # the kernel's same-page merging
CONSOLE_PORTS = range(26000, 27000)  # the instances' VNC servers and serial ports, on loopback
PATHS = dict(
    HOME=HOME, STATE=STATE, ROOTFS=ROOTFS, CONF=CONF, ENV=ENV, EC2=EC2, BIN=ENV / "bin", USER=USER, GUEST_USER=GUEST_USER,
    OVS=STATE / "ovs", OVSDB=f"unix:{STATE}/ovs/db.sock", MAC_PREFIX="fa:6e:70",
    VNC_MIN=CONSOLE_PORTS[0], VNC_MAX=CONSOLE_PORTS[499], SERIAL_MIN=CONSOLE_PORTS[500], SERIAL_MAX=CONSOLE_PORTS[-1],
)

# What a cloud that was just made has in STATE; kept by the first run, copied by those that would make the same one.
NEW = ("databases", "glance/images", "ovs/ovnnb.db")

# A setting that puts a folder under DIR elsewhere: there, a folder of our own is mounted in its place.
ELSEWHERE = (
    ("INSTANCES_PATH",     "instances"),
    ("LOCK_PATH",          "state/locks"),
)

# ---- The services: conf/services.toml ----


class Window(NamedTuple):
    """A window of the session: [[SERVICE.window]] in conf/services.toml, whose head says what each of these is."""

    name: str
    wave: str
    user: str
    command: str
    preload: str = ""
    ready: str = ""

    @property
    def line(self) -> str:
        """Its command, as a fork of the preloaded process where there is one for it."""
        return f"fork {self.preload} {self.command}" if self.preload else self.command


@dataclass(frozen=True)
class Service:
    """[SERVICE] in conf/services.toml, whose head says what each of these is."""

    why: str
    asked_for_by: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    group: str = ""
    environment: str = "env"
    folders: dict[str, str] = field(default_factory=dict)
    emptied: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    files: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    databases: tuple[str, ...] = ()
    fill: tuple[str, ...] = ()
    endpoint: tuple[str, str] = ("", "")
    contents: dict[str, dict[str, str]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    window: tuple[dict[str, str], ...] = ()

    @property
    def windows(self) -> list[Window]:
        """Its windows."""
        return [Window(**row) for row in self.window]


SERVICES = {name: Service(**block) for name, block in tomllib.loads((HERE / "conf/services.toml").read_text()).items()}
WINDOWS = {window.name: window for service in SERVICES.values() for window in service.windows}
PATHS |= {name: port for service in SERVICES.values() for name, port in service.ports.items()}
# whose a window or a file is, in the words of conf/services.toml
USERS = {"root": ROOT, "service": USER, "privsep": PRIVSEP, "disks": DISKS, "caller": "caller"}
OPENSTACK = ("control", "workers", "compute")  # the waves of OpenStack itself


def services(cfg: Settings) -> dict[str, Service]:
    """Those that these settings ask for, by their names."""
    return {name: each for name, each in SERVICES.items() if not each.asked_for_by or asked_for(cfg, each.asked_for_by)}


def windows(cfg: Settings, *waves: str) -> list[Window]:
    """The windows of these waves, or all of them, that the settings ask for, in the order in which they start."""
    found = [window for service in services(cfg).values() for window in service.windows]
    return [window for wave in waves for window in found if window.wave == wave] if waves else found


# ---- Tables: databases, accounts, networks, images ----

# What templates call the databases, by USE_MYSQL. neutron is always in MariaDB: its project does not support SQLite (its
# migrations alter constraints, and it opens a second writing session while its first is open). CELL is for nova-manage,
# which puts the parts of nova's own connection in: a password has no place in argv.
DATABASE_URLS = {
    True:  dict(DATABASE="mysql+pymysql://nova:$MYSQL_PASS@localhost", QUERY=f"unix_socket={STATE}/mysql/sock&ssl_disabled=true",
                CELL="{scheme}://{username}:{password}@{hostname}"),
    False: dict(DATABASE=f"sqlite:///{STATE}/databases/sqlite", QUERY="plugin=immediate&timeout=60",
                CELL=f"sqlite:///{STATE}/databases/sqlite"),
}


class Manager(NamedTuple):
    """A row below: what NET_MAN makes of `private`, does a DHCP server answer there, has this machine an address there."""

    private: dict[str, object]
    dhcp: bool
    host: bool


MANAGERS = {
    "VlanManager":     Manager({"provider_network_type": "vlan", "provider_segmentation_id": 100}, dhcp=True, host=False),
    "FlatDHCPManager": Manager({"provider_network_type": "flat", "is_shared": True}, dhcp=True, host=True),
    "FlatManager":     Manager({"provider_network_type": "flat", "is_shared": True}, dhcp=False, host=True),
}
# A project that has no network gets one by itself, with a /26 of the first of these that is nobody else's here.
POOLS = ("10.240.0.0/16", "172.28.0.0/16", "192.168.224.0/19")
BRIDGES = ("br-ex", "br100", "br-int", "ovs-netdev")  # interfaces that a cloud makes, instances' taps aside
GROUP = 0x6E70  # the group of links that they are in

# setting of nova, its value with QUOTAS=1: upstream's default
QUOTAS = (("INSTANCES", 10), ("CORES", 20), ("RAM", 51200))

# ---- What a new cloud has for its users: conf/cloud.toml ----

CLOUD = tomllib.loads((HERE / "conf/cloud.toml").read_text())
ACCOUNTS = tuple(map(tuple, CLOUD["accounts"]))
FLAVORS = tuple(map(tuple, CLOUD["flavors"]))
IMAGES = CLOUD["images"]

# what status lists,    of which API,    the client's call,       its options,           columns, and what the client calls them
LISTED: tuple[tuple[str, str, str, dict[str, Any], dict[str, str]], ...] = (
    ("services",           "compute",       "compute.services",      {},
        {"service": "binary", "host": "host", "state": "state"}),
    ("instances",          "compute",       "compute.servers",       {"all_projects": True},
        {"instance": "name", "id": "id", "state": "status", "addresses": "addresses"}),
    ("volumes",            "block-storage", "block_storage.volumes", {"all_projects": True},
        {"volume": "name", "id": "id", "state": "status", "size": "size"}),
    ("floating_addresses", "network",       "network.ips",           {},
        {"floating_address": "floating_ip_address", "fixed_address": "fixed_ip_address"}),
)

# fmt: on


def images(cfg: Settings) -> dict[str, Any]:
    """Those of conf/cloud.toml that are built here."""
    return {name: image for name, image in IMAGES.items() if name in ("ami-tty", cfg.IMAGE)}


def asked_for(cfg: Settings, setting: str) -> bool:
    """Is this setting on? "NAME=VALUE": has it that value?"""
    name, _, value = setting.partition("=")
    now = getattr(cfg, name)
    return str(now) == value if value else now not in (False, "", "0")


def told(cfg: Settings, setting: str) -> str:
    """A setting that is on, as the user said it."""
    return setting if "=" in setting else f"{setting}={int(getattr(cfg, setting))}"


# ---- Talking: the log, steps, the caller ----

log = logging.getLogger("nova.py")
BEGAN = time.monotonic()
STEPS: list[tuple[str, float]] = []  # what each step took, in seconds, in the order in which they ended

# On a terminal, below what was said: what is at work, how far it is, and the last line that its command said.
BARS = progress.Progress(
    progress.SpinnerColumn(),
    progress.TextColumn("{task.description}", markup=False),
    progress.BarColumn(20),
    progress.TextColumn("{task.fields[said]}", markup=False),
    console=Console(stderr=True),
    disable=not sys.stderr.isatty() or not {"-v", "--dry-run"}.isdisjoint(ARGUMENTS),
    redirect_stdout=False,  # what programs read
    transient=True,
)
AT_WORK = threading.local()  # of this thread: .bar, while it is in a step; .depth of changes; .in_command, while in one


def start_log(cfg: Settings) -> None:
    """Everything goes to DIR/state/log/nova.log, with the time; -v shows it on the screen as well."""
    if DRY_RUN:
        return
    path = cfg.DIR / "state/log/nova.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    path.chmod(0o600)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    LOG_FILE[:] = [path]


def say(line: str) -> None:
    """A line for the person who waits."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece: steps may run in parallel
    log.info("%s", line)


@contextlib.contextmanager
def telling_full_disks(cfg: Settings) -> Iterator[None]:
    """Where a disk is full, that is why something failed, whatever it says itself."""
    try:
        yield
    except (Failure, OSError) as error:
        places = filter(None, (cfg.DIR, cfg.INSTANCES_PATH, cfg.LOCK_PATH))
        free = {str(place): shutil.disk_usage(nearest(Path(str(place)))).free >> 20 for place in places}
        full = [f"{place} ({megabytes} MiB free)" for place, megabytes in free.items() if megabytes < FULL]
        if not full or getattr(error, "code", 1) != 1:
            raise
        hint = f"full: {', '.join(full)}; make room (4 GiB for install, 1 GiB for a cloud), then repeat"
        raise Failure(str(error), hint, getattr(error, "tail", ()), during=getattr(error, "during", "")) from None


FULL = 64  # MiB that are left on a full disk: below 50 RabbitMQ takes no more messages


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done and at which second; a Failure inside is told with it."""
    started = time.monotonic()
    say(f"{started - BEGAN:6.1f} s  {what}") if not DRY_RUN else print(f"\n# {what}")
    AT_WORK.bar = bar = BARS.add_task(what, total=None, said="")
    try:
        yield
    except Failure as failure:
        failure.during = failure.during or what
        raise
    except Exception as error:  # of the APIs' client, mostly: told like the others, in full in the log
        log.exception(what)
        raise Failure(f"{type(error).__name__}: {error}", during=what) from error
    finally:
        AT_WORK.bar = None
        BARS.remove_task(bar)
    STEPS.append((what, time.monotonic() - started))


def in_parallel(*functions: Callable[[], Any]) -> list[Any]:
    """Call all of them at once and wait for all: what they return; the first failure is raised."""
    with concurrent.futures.ThreadPoolExecutor(1 if DRY_RUN else len(functions)) as pool:  # one: said in their order
        return [done.result() for done in [pool.submit(f) for f in functions]]


# ---- Changes: each is said and then made; with --dry-run it is only said ----


def change(line: str, make: Callable[[], Any]) -> Any:
    """The gate that every change of the machine goes through: what `make` returns; None with --dry-run.

    `line` is the command, or a comment that says what changes; secrets stand in it by their names. What `make` itself
    changes is part of it, so the log has that further to the right.
    """
    if not DRY_RUN:
        depth = getattr(AT_WORK, "depth", 0)
        log.debug("%s+ %s", "  " * depth, hidden(line))
        AT_WORK.depth = depth + 1
        try:
            return make()
        finally:
            AT_WORK.depth = depth
    print(hidden(line), flush=True)


def hidden(text: str) -> str:
    """The same with $NAME for each secret that is known."""
    given = {name: os.environ.get(name, "") for name in SECRETS}
    of_kept = {name: secret for name, secret in kept(KEPT).items() if name in SECRETS}
    known = {secret: f"${name}" for name, secret in {**of_kept, **given, **passwords(STATE)}.items() if secret}
    for value, name in known.items():
        text = text.replace(value, name)
    return text


GONE: set[Path] = set()  # what --dry-run has said that it is removed


def make_folder(path: Path) -> None:
    """A folder, with those on the way to it; one that is there stays as it is."""
    if not path.is_dir() or GONE & {path, *path.parents}:
        change(f"mkdir --parents --mode=755 {path}", lambda: path.mkdir(0o755, parents=True, exist_ok=True))


def remove(*paths: Path) -> None:
    """Files, links and folders, with all that is in them; those that are there."""
    if there := [path for path in paths if os.path.lexists(path) and path not in GONE]:
        GONE.update(there if DRY_RUN else ())
        change(shlex.join(["rm", "--recursive", "--force", *map(str, there)]), lambda: unlink(*there))


def unlink(*paths: Path) -> None:
    """What rm --recursive --force does."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def move(old: Path, new: Path) -> None:
    """A file or a folder gets another name."""
    change(f"mv --no-target-directory {old} {new}", lambda: old.rename(new))


# What commands say is read, by the log's reader at least.
PLAIN = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"}


def do(*argv: object, user: str = ROOT, text: str = "", env: Mapping[str, str] = {}, cwd: object = "/", hint: str = "") -> None:
    """Run a command of ROOTFS that changes something; log all that it says; raise Failure with its last lines and `hint`.

    `text` is its standard input, `env` is added to its environment: secrets go there, argv is logged.
    """
    words = [*(("env", f"--chdir={cwd}") if str(cwd) != "/" else ()), *map(str, argv)]
    if user != ROOT:
        words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *words]
    change(as_line(env, "enter ", words), lambda: carry_out(entered(words), text, env, hint))


def do_outside(*argv: object, env: Mapping[str, str] = {}, cwd: object = "/", hint: str = "") -> None:
    """Run a command of this machine, as `do` does one of ROOTFS."""
    words = [*(("env", f"--chdir={cwd}") if str(cwd) != "/" else ()), *map(str, argv)]
    change(as_line(env, "", words), lambda: carry_out(words, "", env, hint))


def as_line(env: Mapping[str, str], entry: str, words: list[str]) -> str:
    """A command as it is said: in the log as it is, with --dry-run with its environment and how it is entered."""
    before = "".join(f"{name}={shlex.quote(value)} " for name, value in env.items()) + entry if DRY_RUN else ""
    return before + shlex.join(words)  # secrets are in `env`: not in the log


def surroundings(more: Mapping[str, str] = {}) -> dict[str, str]:
    """The environment of commands. The caller's folder for temporary files (TMPDIR, TEMP...) is not there in ROOTFS."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("TMP", "TEMP"))} | PLAIN | dict(more)


def entered(words: Sequence[str]) -> list[str]:
    """A command of ROOTFS, as the machine calls it."""
    return ["chroot", str(ROOTFS), *words]


def carry_out(words: list[str], text: str = "", env: Mapping[str, str] = {}, hint: str = "") -> None:
    """Run a command for `do`."""
    tail: collections.deque[str] = collections.deque(maxlen=20)
    bar = getattr(AT_WORK, "bar", None)

    def keep(line: str) -> None:
        log.debug("  %s", line.rstrip())
        tail.append(line.rstrip())
        if bar is not None:
            BARS.update(bar, said=line.strip()[:70])

    options: Any = dict(_in=text, _out=keep, _err_to_out=True, _tty_out=False, _cwd="/")
    try:
        command(words, **options, _env=surroundings(env))
    except sh.CommandNotFound:
        raise Failure(f"this machine has no {words[0]}", hint) from None
    except sh.ErrorReturnCode as error:
        said = shlex.join(words).removeprefix(shlex.join(entered(())) + " ")
        missing = "sudo python3 nova.py install" if error.exit_code == 127 else ""  # chroot's, of a command that is not there
        raise Failure(f"{said}\n  ended with exit code {error.exit_code}", hint or missing, tuple(tail)) from None


def command(words: list[str], **options: Any) -> Any:
    """sh's command. Ctrl-C ends it, and is raised here once it has ended.

    Raised inside of sh (2.4.0) it would be lost at times, or leave a lock taken for ever, and a fork that is not yet the
    command would go on as a second nova.py.
    """

    def before_exec() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if INTERRUPTED:
            signal.raise_signal(signal.SIGINT)

    AT_WORK.in_command = True
    try:
        return sh.Command(words[0])(*words[1:], **options, _preexec_fn=before_exec)
    except sh.SignalException_SIGINT:  # it was told first
        raise KeyboardInterrupt from None
    finally:
        AT_WORK.in_command = False
        if INTERRUPTED and threading.current_thread() is threading.main_thread():
            INTERRUPTED.clear()
            raise KeyboardInterrupt


INTERRUPTED: list[int] = []  # Ctrl-C came in a command


def interrupt(number: int, frame: object) -> None:
    """Ctrl-C: see command."""
    if not getattr(AT_WORK, "in_command", False):
        raise KeyboardInterrupt
    INTERRUPTED.append(number)


def ask(*argv: object, ok: tuple[int, ...] = (0,), default: str | None = None, outside: bool = False) -> str:
    """What a command of ROOTFS, or one `outside`, says, stripped; it must change nothing. `default` is for failures."""
    words = [str(word) for word in argv]
    log.debug("? %s", shlex.join(words))
    try:
        options: Any = dict(_in="", _tty_out=False, _ok_code=ok, _env=surroundings())
        return str(command(words if outside else entered(words), **options)).strip()
    except (sh.CommandNotFound, sh.ErrorReturnCode) as error:
        if default is not None or DRY_RUN:  # there, what would come first may have been what it asks about
            return default or ""
        why = error.stderr.decode(errors="replace") if isinstance(error, sh.ErrorReturnCode) else "it is not installed"
        raise Failure(f"{shlex.join(words)} failed", tail=tuple(why.splitlines()[-20:])) from None


def forgiven(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call it; a Failure becomes a line in the log. Only for taking down, where the rest must go on."""
    try:
        function(*arguments, **options)
    except Failure as failure:
        log.info("forgiven: %s %s", failure, " | ".join(failure.tail))


def wait_for(what: str, ready: Callable[[], object] | str, seconds: float, window: Window | None = None) -> None:
    """Look five times a second until `ready` is true, or somebody answers there, where it is a place; nothing else sleeps.

    A probe may raise: its last error is told when the time is up. The death of the service of `window` ends the wait.
    """
    if DRY_RUN:
        return print(f"# wait for {what}")
    began, last = time.monotonic(), "it never answered"
    while time.monotonic() < began + seconds:
        try:
            if answers(ready) if isinstance(ready, str) else ready():
                log.debug("%s: ready after %.1f s", what, time.monotonic() - began)
                return
        except Failure:
            raise
        except Exception as error:  # a probe of something that is not up yet may fail in any way
            last = f"{type(error).__name__}: {error}"
        if window and (line := text_of(STATE / f"run/{window.name}.died").strip()):
            raise Failure(f"the service of a window died: {line}", tail=last_lines(window.name))
        time.sleep(0.2)
    tail = last_lines(window.name) if window else ()
    raise Failure(f"{what} is not ready after {seconds:.0f} s ({last})", tail=tail)


# ---- The machine: files, the record, windows, processes ----


def values(cfg: Settings) -> dict[str, Any]:
    """What templates may name: settings, paths, ports, passwords."""
    chosen = asdict(cfg)
    # With --dry-run those that install would make have names only.
    known = {name: f"${name}" for name in SECRETS if DRY_RUN and not chosen[name]} | passwords(STATE)
    urls = {name: string.Template(url).safe_substitute(known) for name, url in DATABASE_URLS[cfg.USE_MYSQL].items()}
    machine = {"HOSTNAME": socket.gethostname()}
    kernel = has_kernel_datapath()
    machine |= {"DATAPATH": "system" if kernel else "netdev", "STATELESS": str(not kernel)}
    machine["INTERFACES"] = ", ".join(f'"{name}"' for name in netifaces.interfaces() if name not in BRIDGES)
    machine |= {"CONFIG_DRIVE": str(not MANAGERS[cfg.NET_MAN].dhcp), "VOLUMES_BACKEND": "lvm" if cfg.VOLUMES_LVM else "files"}
    machine["BACKUPS"] = "swift.Swift" if cfg.USE_SWIFT else "posix.Posix"
    # A key of 256 bits in hex, as the key managers of cinder and nova want it.
    machine["VOLUMES_KEY"] = hashlib.sha256(known.get("VOLUMES_SECRET", "").encode()).hexdigest()
    machine |= {"DISKS": "raw", "TAPS": "false"} if cfg.LIBVIRT_TYPE == "lxc" else {"DISKS": "default", "TAPS": "true"}
    machine |= {f"QUOTA_{name}": str(size if cfg.QUOTAS else -1) for name, size in QUOTAS}
    machine["QUOTA_GIGABYTES"] = "1000" if cfg.QUOTAS else cfg.VOLUMES_SIZE
    machine["UNASKED"] = '"cpu-unavailable-features"' if cfg.LIBVIRT_TYPE == "qemu" else ""
    machine |= {"HAS_DIRECTORY": str(bool(cfg.DIRECTORY)), "CACHED": str(not cfg.DIRECTORY)}
    machine |= {"LDAP_NAME": cfg.LDAP_TREE.partition(",")[0].partition("=")[2], "REMEMBERED": "5" if cfg.DIRECTORY else "300"}
    machine["LDAP_SERVER"] = cfg.LDAP_URL if cfg.DIRECTORY == "yours" else f"ldap://127.0.0.1:{PATHS['LDAP_PORT']}"
    return {**chosen, **PATHS, **machine, **known, **urls}


def text_of(path: Path | str) -> str:
    """What a file says; "" where it is not there, or went with its process."""
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""


def stat_of(path: Path) -> os.stat_result | None:
    """What the file system says of a file; None where it is not there."""
    with contextlib.suppress(OSError):
        return path.stat()
    return None


def lines_of(path: Path | str) -> list[str]:
    """The lines of a file; none where it is not there."""
    return text_of(path).splitlines()


def kept(path: Path) -> dict[str, Any]:
    """What one of our own files in JSON says; nothing where it is not there."""
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except ValueError as error:
        raise Failure(f"{path} cannot be read: {error}", "without that file it is as if it had never been") from None


def passwords(state: Path) -> dict[str, str]:
    """The secrets of the cloud with this state folder; none before its first install."""
    return kept(state / "passwords.json")


def render(text: str, cfg: Settings) -> str:
    """A template with every $NAME put in; an unknown name is an error."""
    return string.Template(text).substitute(values(cfg))


def write_file(path: Path, content: str | bytes, mode: int = 0o644, owner: str = ROOT) -> None:
    """Write it whole or not at all, readable for nobody too early."""
    text = content if isinstance(content, str) else content.decode()
    change(f"# write {path} ({owner}, {mode:o})", lambda: put_file(path, text, mode, owner))


def put_file(path: Path, content: str, mode: int, owner: str) -> None:
    """Write a file for write_file."""
    if path.is_relative_to(ROOTFS / "etc"):
        path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content.encode())
        if path.suffix == ".json" or path.name == "record":  # what has to be whole after a power cut
            file.flush()
            os.fsync(file.fileno())
    give(new, owner)
    new.rename(path)


def give(path: Path, owner: str) -> None:
    """Make it `owner`'s: a user of ROOTFS; "caller" is who called sudo."""
    uid, gid = 0, 0
    if owner == "caller":
        uid, gid = int(os.environ.get("SUDO_UID", "0")), int(os.environ.get("SUDO_GID", "0"))
    elif owner != ROOT:
        uid = gid = NUMBERS[owner.partition(":")[0]]
    os.chown(path, uid, gid, follow_symlinks=False)


def record(*undo: object, lasting: bool = False, outside: bool = False) -> None:
    """Write down the command that takes back what comes next, before it comes; `lasting`: what a reboot does not take back."""
    words = [str(word) for word in undo]
    line = shlex.join(words if outside else entered(words))
    # on a line of its own, wherever the last one was cut off
    append(STATE / "record", f"\n{line}  # {checksum(line, '' if lasting else boot())}\n")


def append(path: Path, text: str) -> None:
    """Add it to a file's end; it is on the disk when this returns."""

    def write() -> None:
        with open(path, "a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    change(f"# add to {path}: {text.strip()}", write)


def checksum(line: str, boot: str) -> str:
    """A line that was cut off has another one; so has one of before a reboot: what it names may be somebody else's by now."""
    return f"{zlib.crc32((line + boot).encode()):08x}"


def boot() -> str:
    """Which boot of this machine it is; of a container, its own."""
    kernel, first = text_of("/proc/sys/kernel/random/boot_id"), text_of("/proc/1/stat")
    return kernel + first.rpartition(")")[2].split()[19] if kernel else ""


def recorded() -> list[str]:
    """The lines of the record that are whole and still mean what they meant."""
    lines = lines_of(STATE / "record")
    sums = {line: line.rpartition("  # ") for line in lines if line}
    return [line for line in lines if line and sums[line][2] in (checksum(sums[line][0], each) for each in ("", boot()))]


def undo_recorded() -> None:
    """Take back everything in the record, last first; a line is gone only when it was tried.

    What would delete disks of a cloud that is kept stays for scrub.
    """
    lines, stay = recorded(), list[str]()
    while lines:
        words = shlex.split(lines[-1], comments=True)
        inside = words[: len(entered(()))] == entered(())
        if is_kept() and words[len(entered(())) if inside else 0] in ("rm", "rmdir", "vgremove"):
            stay.insert(0, lines.pop())
            continue
        lines.pop()
        forgiven(do_outside, *words)
        write_file(STATE / "record", "".join(f"{line}\n" for line in lines + stay))


NOT_OURS: list[str] = []  # what was mounted before private_mounts


def private_mounts(cfg: Settings) -> None:
    """DIR is at /run/nova.py, and in ROOTFS, the root file system of all that is started: for nova.py and for them alone.

    bootstrap called unshare, so nobody else sees these mounts: there is nothing to undo, a home folder need not be opened
    for QEMU, and whoever has HOME mounted is a process of this cloud.
    """
    NOT_OURS[:] = lines_of("/proc/self/mountinfo")
    if not HOME.exists():
        do_outside("mkdir", HOME)
        if DRY_RUN:
            HOME.mkdir()
            atexit.register(HOME.rmdir)
            atexit.register(carry_out, ["umount", "--recursive", str(HOME)])
    mount("--bind", cfg.DIR.resolve(), HOME)
    if ROOT_MADE.exists():
        mount_root(cfg)
        share_screen()
        write_machine_files()


def mount(*words: object) -> None:
    """A mount that nobody sees but the cloud's processes and us; with --dry-run for us, where there is something to see."""
    do_outside("mount", *words)
    if DRY_RUN:
        forgiven(carry_out, ["mount", *map(str, words)])


def mount_root(cfg: Settings) -> None:
    """What is in ROOTFS beside its packages: the kernel's file systems, this clone, DIR, and what is of this machine."""
    for _ in "12":  # below a root whose parent is shared, as HOME will be, libvirt's containers cannot have one of their own
        mount("--bind", ROOTFS, ROOTFS)
    for name in ("proc", "sys", "dev"):
        mount("--rbind", f"/{name}", ROOTFS / name)
    for place in ("/lib/modules", "/run/udev"):  # modules for this kernel; udev, for LVM
        if Path(place).is_dir():
            make_folder(ROOTFS / place[1:])
            mount("--bind", place, ROOTFS / place[1:])
    mount("--bind", HERE, ROOTFS / CLONE.relative_to("/"))
    mount("-o", "remount,bind,ro", ROOTFS / CLONE.relative_to("/"))
    mount("--make-shared", HOME)  # what is mounted in DIR later is there for both
    mount("--bind", HOME, ROOTFS / HOME.relative_to("/"))
    if cfg.LIBVIRT_TYPE != "kvm" and Path("/dev/kvm").exists():
        # Where the device is there but does not work, libvirt probes QEMU anew at every call: ten seconds an instance.
        write_file(STATE / "no-kvm", "", 0o600)
        mount("--bind", STATE / "no-kvm", ROOTFS / "dev/kvm")
    if cfg.LIBVIRT_TYPE == "lxc" and not has_cgroup2():
        groups = ROOTFS / CGROUPS.relative_to("/")  # libvirt would look for groups where it finds version 2
        forgiven(do_outside, "umount", "--recursive", "--lazy", groups)
        mount("-t", "tmpfs", "tmpfs", groups)
        for name in CONTROLLERS:
            make_folder(groups / name)
            mount("-t", "cgroup", "-o", name, "cgroup", groups / name)


def share_screen() -> None:
    """Where this machine has a screen, it finds our session: the sockets are in its folder, whose mode our screen has to fit.

    The package of screen would change that mode, so this comes after it.
    """
    folder, ours, program = Path("/run/screen"), ROOTFS / "run/screen", ROOTFS / "usr/bin/screen"
    if folder.is_dir() and program.exists() and not ours.samefile(folder):
        mount("--bind", folder, ours)
        mode = 0o2755 if folder.stat().st_mode & 0o777 == 0o775 else 0o755  # set-group-ID, as in Debian 12
        if program.stat().st_mode & 0o7777 != mode:
            do("chgrp", "utmp", "/usr/bin/screen")
            do("chmod", f"{mode:o}", "/usr/bin/screen")


def write_machine_files() -> None:
    """What ROOTFS has of this machine: its name, its name servers, and the certificates that it trusts."""
    do_outside(LIBEXEC / "machine-files.py", ROOTFS)


CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpuacct", "devices", "memory")  # of control groups, version 1: without them libvirt starts no container


def has_cgroup2() -> bool:
    """Does version 2 of control groups limit memory here? Otherwise libvirt's containers need version 1."""
    return "memory" in text_of(CGROUPS / "cgroup.controllers")


def leave_mounts(cfg: Settings) -> None:
    """Out of the private mounts: what is removed from here on is the machine's."""
    ours = [line.split()[4] for line in lines_of("/proc/self/mountinfo") if line not in NOT_OURS]
    for place in reversed(ours if NOT_OURS else []):
        forgiven(do_outside, "umount", "--lazy", place)
    left = [line for line in lines_of("/proc/self/mountinfo") if f" {cfg.DIR.resolve()}/" in line]
    if left and not DRY_RUN:
        raise Failure(f"{left[0].split()[4]} is mounted, and would be deleted with {cfg.DIR}", "umount it first")


def cloud_of(process: int | str) -> str:
    """Which folder (device and path) a process has mounted at HOME; "" where none: no process of any cloud."""
    found = re.search(rf"(\d+:\d+ \S+) {re.escape(str(HOME))} ", text_of(f"/proc/{process}/mountinfo"))
    return found[1] if found else ""


def processes() -> list[psutil.Process]:
    """Every process of this cloud, oldest first: those that have DIR at HOME, but for nova.py and who called it.

    What is in a container sees nothing of ours; libvirt has told it the instance's id.
    """
    mine, ours = {os.getpid(), *(p.pid for p in psutil.Process().parents())}, cloud_of("self")
    found = [p for p in psutil.process_iter() if ours and p.pid not in mine and cloud_of(p.pid) == ours]
    marks = [f"LIBVIRT_LXC_UUID={each}" for each in containers()]
    for process in psutil.process_iter() if marks else ():
        told = text_of(f"/proc/{process.pid}/environ")
        found += [process for mark in marks if mark in told]
    return sorted(found, key=lambda p: p.pid)


def program_of(process: int | str) -> str:
    """What a process runs, as the kernel has it: its first 15 characters; "" where it has ended."""
    return text_of(f"/proc/{process}/comm").rstrip("\n")


def containers() -> list[str]:
    """The ids of the instances that are containers, as our libvirt has them."""
    return re.findall("<uuid>(.*)</uuid>", "".join(path.read_text() for path in DOMAINS.glob("lxc/*.xml")))


def send(number: signal.Signals, those: list[psutil.Process]) -> None:
    """A signal to those of them that are there."""
    for process in those:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def await_end(those: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Who of them still runs after so long. Who has ended may be listed for seconds more, where process 1 is slow."""
    until, eyes = time.monotonic() + seconds, selectors.DefaultSelector()
    for process in those:
        with contextlib.suppress(ProcessLookupError):
            eyes.register(os.pidfd_open(process.pid), selectors.EVENT_READ, process)  # readable when it has ended
    while eyes.get_map() and (ended := eyes.select(max(until - time.monotonic(), 0))):
        for key, _ in ended:
            eyes.unregister(key.fd)
            os.close(key.fd)
    left = [key.data for key in eyes.get_map().values()]
    for key in eyes.get_map().values():
        os.close(key.fd)
    return left


def end_processes(those: list[psutil.Process], seconds: float) -> None:
    """Ask them to end (SIGTERM), wait for so long, and make the rest (SIGKILL), with what they started."""

    def end() -> None:
        send(signal.SIGTERM, those)
        for process in await_end(those, seconds):
            with contextlib.suppress(psutil.Error):
                log.info("killed: %s", process.cmdline())
                send(signal.SIGKILL, [process, *process.children(recursive=True)])
        await_end(those, 5)

    if those:
        change(shlex.join(["kill", *(str(process.pid) for process in those)]), end)


def sessions(cfg: Settings) -> dict[int, bool]:
    """The screen sessions with our name, whoever's they are: the process, and whether it lives; killed, it leaves its socket."""
    said, ours = ask("screen", "-ls", ok=(0, 1), default=""), rf"^\s+(\d+)\.{re.escape(cfg.SCREEN_NAME)}(\s.*)"
    return {int(pid): "Dead" not in rest for pid, rest in re.findall(ours, said, re.M)}


def session(cfg: Settings) -> int:
    """The process of the one that lives; 0 where there is none."""
    return next((pid for pid, lives in sessions(cfg).items() if lives), 0)


def to_screen(cfg: Settings, *command: object) -> None:
    """Have the session carry out a command of screen's own."""
    name = f"{found}.{cfg.SCREEN_NAME}" if (found := session(cfg)) else cfg.SCREEN_NAME  # which would match longer ones
    do("screen", "-S", name, "-X", *command)


def open_windows(cfg: Settings, asked: Sequence[Window]) -> None:
    """Open them: in each the service, and when that was ended a shell in which up-arrow starts it again.

    Until then a smaller shell waits, which takes a third of the memory.
    """
    for window in asked:
        command = f"keep {window.name} {USERS[window.user]} {render(window.line, cfg)}"
        file = STATE / f"run/{window.name}.rc"
        remove(file.with_suffix(".died"))
        cases = f"*i*) history -s {shlex.quote(command)} ;;\n*) trap : INT QUIT; {command}; exec bash --rcfile {file} -i ;;"
        write_file(file, f". {CONF}/window\ncase $- in\n{cases}\nesac\n")
    lines = [f"screen -t {window.name} sh {STATE}/run/{window.name}.rc" for window in asked]
    for first in range(0, len(lines), 6):  # of more than 767 characters screen (4.9) does nothing, and says nothing
        to_screen(cfg, "eval", *lines[first : first + 6])


def service_of(window: str) -> psutil.Process | None:
    """The process that a window's keep looks after; None while there is none."""
    with contextlib.suppress(ValueError, psutil.Error, StopIteration):
        keeper = psutil.Process(int(text_of(STATE / f"run/{window}.pid")))
        besides = ("sleep", "keep")  # its pause, and what it does again
        it = next(child for child in keeper.children() if child.name() not in besides)
        if it.name() == "tini":
            it = it.children()[0]
        line = it.cmdline()
        return psutil.Process(int(line[line.index("fork") + 1])) if "fork" in line else it  # who waits: conf/fork.tmpl
    return None


def last_lines(window: str, count: int = 12) -> tuple[str, ...]:
    """The end of a window's log, without empty lines and colours."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text_of(STATE / f"log/{window}.log"))
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line)[-count:]


def answers(place: str) -> bool:
    """Does somebody answer at this URL, host:port or socket, or to this queue (amqp:NAME)? An API that says no has answered."""
    if place.startswith("amqp:"):
        return consumers(place.removeprefix("amqp:")) > 0
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


def consumers(queue: str) -> int:
    """How many listen to a queue of RabbitMQ's; raises where there is no such queue, or no RabbitMQ yet."""
    import amqp  # type: ignore[import-untyped]  # here: most verbs need none

    login = dict(userid="nova", password=passwords(STATE)["RABBIT_PASS"], connect_timeout=5, read_timeout=5)
    with amqp.Connection(f"127.0.0.1:{PATHS['RABBIT_PORT']}", **login) as rabbit:
        return int(rabbit.channel().queue_declare(queue, passive=True).consumer_count)


def wait_for_windows(cfg: Settings, asked: Sequence[Window], seconds: float = 90) -> None:
    """Each answers, where it has something to answer with; or a Failure that names it."""
    for window in asked:
        if place := render(window.ready, cfg):
            wait_for(f"{window.name} ({place})", place, seconds, window)


@functools.cache
def cloud(cfg: Settings) -> Any:
    """A connection to the running cloud as its admin; the log has each change that it asks for."""
    import openstack  # here: a second that most verbs need not spend

    files = openstack.config.OpenStackConfig(config_files=[f"{HOME}/clouds.yaml"], secure_files=[], load_envvars=False)
    # with a full disk an API may wait for its database for ever
    admin = openstack.connection.Connection(config=files.get_one("nova", api_timeout=120))
    admin.session.session.hooks["response"].append(log_api_change)
    return admin


def log_api_change(response: Any, *_: Any, **__: Any) -> None:
    """For requests: a line in the log for what changes something."""
    if response.request.method not in ("GET", "HEAD"):
        log.debug("+ %s %s  %d", response.request.method, response.request.url, response.status_code)


def by_api(recipe: Callable[..., Any]) -> Callable[..., Any]:
    """Mark what is done by OpenStack's APIs alone: --dry-run has no cloud to ask, so it prints its docstring's first line."""

    @functools.wraps(recipe)
    def do_it(*arguments: Any) -> Any:
        if not DRY_RUN:
            return recipe(*arguments)
        print(f"# by OpenStack's APIs: {str(recipe.__doc__).splitlines()[0]}")

    return do_it


# ---- The machine as it was: looked at before the first change, compared when all is undone ----

LOCK = Path("/run/nova.py.lock")  # held by the one nova.py that is at work
CALLER = f"/proc/{os.getppid() or 1}"  # who called; 0: somebody outside of this container
BASELINE = STATE / "baseline"  # how the machine was before this cloud's first run
AROUND = STATE / "around.json"  # the folders that were made for DIR to be in


def inventory() -> str:
    """What a cloud could leave on this machine, a line each: libexec/inventory."""
    return "\n".join(sorted(ask("bash", CLONE / "libexec/inventory", os.getppid() or 1).splitlines()))


def save_baseline() -> None:
    """For uninstall: how the machine is before the first run changes anything of it."""
    if not BASELINE.exists():
        change(f"bash {CLONE}/libexec/inventory $PPID | sort >{BASELINE}", lambda: put_file(BASELINE, inventory(), 0o600, ROOT))


def differences() -> list[str]:
    """What is not as it was before the first run: - a line that was there, + one that is there now."""
    if DRY_RUN or not BASELINE.exists():
        return []
    both = difflib.ndiff(lines_of(BASELINE), inventory().splitlines())
    return [line for line in both if line.startswith(("+", "-"))]


# ---- Checks: before anything is changed ----


def refuse_if(wrong: object, why: str, hint: str = "") -> None:
    """What the user asked for cannot be: Failure with code 2."""
    if wrong:
        raise Failure(why, hint, code=2)


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
            refuse_if(value not in ("0", "1"), f"{row.name}={value}: say 0 or 1")
            value = value == "1"
        elif choices := CHOICES.get(row.name):
            refuse_if(value not in choices, f"{row.name}={value}: it can be {', '.join(choices)}")
        chosen[row.name] = value
    return checked(Settings(DIR=Path(folder).absolute(), **chosen))


def checked(cfg: Settings) -> Settings:
    """The same settings with what was left empty found out, and each value possible on this machine."""
    check_words(cfg)
    for setting, beside, why in IMPOSSIBLE:
        refuse_if(asked_for(cfg, setting) and (not beside or asked_for(cfg, beside)), f"{told(cfg, setting)}: {why}")
    check_ranges(cfg)
    if cfg.FLAT_INTERFACE:
        check_flat_interface(cfg.FLAT_INTERFACE)
    if cfg.USE_IPV6:
        check_ipv6(cfg)
    default: Any = netifaces.gateways().get("default", {})
    interface = cfg.INTERFACE or str(default.get(netifaces.AF_INET, ("", ""))[1])
    host_ip = cfg.HOST_IP or (address_of(interface) if interface else "")
    own = sorted(filter(None, map(address_of, netifaces.interfaces())))
    one = f"set HOST_IP to one of {', '.join(own)}"
    refuse_if(interface and not host_ip, f"INTERFACE={interface}: it has no IPv4 address; {one}")
    refuse_if(not host_ip, f"no default route, so no HOST_IP to find: {one}")
    refuse_if(host_ip not in own, f"HOST_IP={host_ip}: not an address of this machine; it has {', '.join(own)}")
    check_elsewhere(cfg)
    check_image(cfg)
    check_directory(cfg)
    return replace(cfg, INTERFACE=interface, HOST_IP=host_ip)


# setting,          what it may look like,         in words
WORDS = (
    ("SCREEN_NAME",    r"[A-Za-z0-9_-]{1,30}",        "letters, digits, - and _ only, 30 at most"),
    ("DIR",            r"/[\w./-]*",                  "letters, digits, . _ - and / only; services would trip over others"),
    *((secret,         r"([A-Za-z0-9_.~-]{8,72})?",   "8 to 72 of A-Z a-z 0-9 _ . ~ -, since it stands in URLs and files")
      for secret in SECRETS),
    *((place,          r"(/[\w./-]+)?",               "an absolute path of letters, digits, . _ - and /")
      for place in ("INSTANCES_PATH", "LOCK_PATH", "OPENDJ_PACKAGE")),
    ("VOLUMES_SIZE",   r"0|[1-9][0-9]{0,3}",          "how many GiB, 9999 at most, or 0"),
    ("LDAP_URL",       r"(ldaps?://[\w.-]+(:(6[0-4]\d{3}|[1-5]?\d{1,4}))?/?)?", "it looks like ldap://HOST or ldaps://HOST:PORT"),
    ("DEBIAN_MIRROR",  r"(https?://[\w.:/~+-]+)?",      "it looks like http://deb.debian.org/debian"),
    ("LDAP_TREE",      r"(dc|o)=[\w-]+(,[a-z]+=[\w-]+)*", "it looks like dc=nova,dc=sh, or like o=nova"),
)  # fmt: skip


def check_words(cfg: Settings) -> None:
    """Failure for what could not stand where it is going to stand."""
    for name, form, words in WORDS:
        if not re.fullmatch(form, str(getattr(cfg, name)), re.ASCII):
            shown = name if name in SECRETS else f"{name}={getattr(cfg, name)}"
            raise Failure(f"{shown}: {words}", code=2)
    there = netifaces.interfaces()
    for name, value in (("INTERFACE", cfg.INTERFACE), ("FLAT_INTERFACE", cfg.FLAT_INTERFACE)):
        refuse_if(value and value not in there, f"{name}={value}: this machine has {', '.join(there)}")


def prompted(cfg: Settings, verb: str) -> Settings:
    """The same settings with what the user types (-p) for each secret that is neither in the environment nor known yet."""
    refuse_if(verb not in ("install", "run", "run_detached"), f"{verb} makes no passwords: it does not take -p")
    known, typed = passwords(cfg.DIR / "state"), dict[str, Any]()
    try:
        open("/dev/tty").close()
        for name in (name for name in SECRETS if not getattr(cfg, name) and name not in known):
            typed[name] = getpass.getpass(f"{name} (nothing: generated): ")
            check_words(replace(cfg, **typed))
            again = typed[name] and getpass.getpass(f"{name} once more: ")
            refuse_if(again != typed[name], f"{name}: that was not the same twice")
    except (OSError, EOFError):
        raise Failure("-p asks at a terminal, and there is none", "set the variables instead: README.md", code=2) from None
    return replace(cfg, **typed)


def nearest(path: Path) -> Path:
    """What is there of a path that may not be."""
    return next(place for place in (path, *path.parents) if place.exists())


def check_elsewhere(cfg: Settings) -> None:
    """INSTANCES_PATH and LOCK_PATH are outside of DIR and of what the cloud has its own of, folders or not there yet."""
    for name, _ in ELSEWHERE:
        if not (value := getattr(cfg, name)):
            continue
        path, there, chosen = Path(value).resolve(), nearest(Path(value).resolve()), f"{name}={value}"
        for taken in (cfg.DIR.resolve(), HOME):
            why = f"it and {taken} must lie beside each other; leave it empty for a folder in {cfg.DIR}"
            refuse_if(path.is_relative_to(taken) or taken.is_relative_to(path), f"{chosen}: {why}")
        refuse_if(not there.is_dir(), f"{chosen}: {there} is not a folder")
        refuse_if(os.statvfs(there).f_flag & os.ST_RDONLY, f"{chosen}: {there} is read-only")
        little = name == "INSTANCES_PATH" and shutil.disk_usage(there).free < 1 << 30
        refuse_if(little, f"{chosen}: less than 1 GiB is free there")


def check_image(cfg: Settings) -> None:
    """IMAGE is a URL that can be asked, or a file that is an image; what a URL brings is looked at when it is here."""
    shown = re.sub("//.*@", "//...@", cfg.IMAGE)
    try:
        url = urllib.parse.urlsplit(cfg.IMAGE if "://" in cfg.IMAGE else "")
    except ValueError as error:
        raise Failure(f"IMAGE={shown}: {error}", code=2) from None
    if url.scheme and not (url.scheme in ("http", "https") and url.hostname and not url.password and url.path.strip("/")):
        raise Failure(f"IMAGE={shown}: it can be a path, or the URL of a file by http or https, without a password", code=2)
    refuse_if(not re.fullmatch("(sha256=[0-9a-fA-F]{64})?", url.fragment), f"IMAGE={shown}: after # it can say sha256=HEX")
    if cfg.IMAGE and not url.scheme and not asked_for(cfg, "IMAGE=debian"):
        image_format(Path(cfg.IMAGE))


def check_directory(cfg: Settings) -> None:
    """OpenDJ comes in a package that is one."""
    if not cfg.USE_OPENDJ:
        return
    path, asked = Path(cfg.OPENDJ_PACKAGE), ("dpkg-deb", "--field", cfg.OPENDJ_PACKAGE, "Package")
    inside = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else ask(*asked, default="", outside=True).split()
    wanted = "USE_OPENDJ=1 wants the path of OpenDJ's .zip or .deb here, because no distribution has it"
    refuse_if({"opendj/setup", "opendj"}.isdisjoint(inside), f"OPENDJ_PACKAGE={cfg.OPENDJ_PACKAGE}: {wanted}")


def image_format(path: Path) -> tuple[str, int]:
    """qcow2 or raw, and the size of the disk in it in bytes, or a Failure.

    OpenStack's own look: a qcow2 may name any other file of this machine as a layer of it, and instances would read that.
    """
    from oslo_utils.imageutils import format_inspector  # here: most verbs need none

    logging.getLogger("oslo_utils").addHandler(logging.NullHandler())  # what it finds is told below
    try:
        inspector: Any = format_inspector.detect_file_format(str(path))
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        why = ", ".join(str(each) for each in error.failures.values())
        raise Failure(f"IMAGE={path}: {why}; make it one whole file: qemu-img convert -O qcow2 OLD NEW", code=2) from None
    except (OSError, format_inspector.ImageFormatError) as error:
        raise Failure(f"IMAGE={path}: {getattr(error, 'strerror', None) or error}", code=2) from None
    form = {"gpt": "raw"}.get(str(inspector), str(inspector))  # a partition table: a disk as it is
    if form not in ("raw", "qcow2") or not inspector.virtual_size or (form == "raw" and path.stat().st_size % 512):
        raise Failure(f"IMAGE={path}: neither qcow2 nor a raw disk; make it one: qemu-img convert -O qcow2 OLD NEW", code=2)
    return form, inspector.virtual_size


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
        refuse_if(networks[name].prefixlen > least, f"{name}={networks[name]}: too small; /{least} is the least")
    both = networks["FLOATING_RANGE"].overlaps(networks["FIXED_RANGE"])
    refuse_if(both, f"FLOATING_RANGE={cfg.FLOATING_RANGE}: overlaps FIXED_RANGE={cfg.FIXED_RANGE}")
    for name, network in networks.items():
        check_not_routed(f"{name}={network}", network, routes())


def check_not_routed(chosen: str, network: Any, ways: Sequence[tuple[Any, str]]) -> None:
    """Nobody else has these addresses: no route to any of them but the default one and a cloud's own."""
    for route, interface in ways:
        if interface not in BRIDGES and route.prefixlen and route.overlaps(network):
            raise Failure(f"{chosen}: this machine has a route to {route} through {interface}", code=2)


def ranges_v6(cfg: Settings) -> tuple[ipaddress.IPv6Network, ipaddress.IPv6Network]:
    """Of FIXED_RANGE_V6, what the networks private and public have."""
    both = ipaddress.IPv6Network(cfg.FIXED_RANGE_V6).subnets(new_prefix=64)
    return next(both), next(both)


def check_ipv6(cfg: Settings) -> None:
    """The kernel speaks IPv6, and nobody else has the cloud's addresses."""
    try:
        ranges_v6(cfg)
    except (ValueError, StopIteration) as error:
        why = str(error) or "/63 is the least"
        raise Failure(f"FIXED_RANGE_V6={cfg.FIXED_RANGE_V6}: not a range of IPv6 networks ({why})", code=2) from None
    for name in ("all", "default"):
        off = text_of(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").strip() != "0"
        refuse_if(off, f"USE_IPV6=1: IPv6 is switched off in this kernel (net.ipv6.conf.{name}.disable_ipv6)")
    check_not_routed(f"FIXED_RANGE_V6={cfg.FIXED_RANGE_V6}", ipaddress.IPv6Network(cfg.FIXED_RANGE_V6), routes6())


def check_flat_interface(name: str) -> None:
    """FLAT_INTERFACE is idle: in a bridge it cannot serve this machine any more."""
    ways: list[tuple[Any, str]] = [*routes(), *routes6()]
    outward = [interface for route, interface in ways if not route.prefixlen]
    refuse_if(name in outward, f"FLAT_INTERFACE={name}: it carries the default route")
    found = netifaces.ifaddresses(name)
    for address in [each["addr"] for kind in (netifaces.AF_INET, netifaces.AF_INET6) for each in found.get(kind, [])]:
        local = ipaddress.ip_address(address.partition("%")[0]).is_link_local
        refuse_if(not local, f"FLAT_INTERFACE={name}: it has the address {address}")
    master = Path(f"/sys/class/net/{name}/master")
    if master.is_symlink() and master.readlink().name != "ovs-system":  # check_machine is about that one
        raise Failure(f"FLAT_INTERFACE={name}: it is in {master.readlink().name} already", code=2)


def settings_of_run(folder: str) -> Settings:
    """What the cloud in this folder was made with: taking down must not depend on how the machine looks by now."""
    files = (Path(folder) / "state" / name for name in (KEPT.name, "settings.json"))  # install may have been called since
    known = next(filter(None, map(kept, files)), {})
    return Settings(DIR=Path(folder).absolute(), **{row.name: known[row.name] for row in fields(Settings) if row.name in known})


def routes() -> list[tuple[ipaddress.IPv4Network, str]]:
    """The machine's IPv4 routes and their interfaces, from /proc: ip(8) may not be there yet."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    places = [(int(row[1], 16).to_bytes(4, "little"), int(row[7], 16).bit_count()) for row in rows]
    return [(ipaddress.IPv4Network(place), row[0]) for place, row in zip(places, rows, strict=True)]


def routes6() -> list[tuple[ipaddress.IPv6Network, str]]:
    """The same of IPv6, but for those to itself (lo)."""
    rows = [line.split() for line in lines_of("/proc/net/ipv6_route") if not line.endswith(" lo")]
    return [(ipaddress.IPv6Network((int(row[0], 16), int(row[1], 16))), row[-1]) for row in rows]


def check_machine(cfg: Settings) -> None:
    """Memory, disk, ports, users: everything that would end a run half-way, told before it begins."""
    check_older_clouds()
    if platform.machine() != "x86_64":
        raise Failure(f"this machine is a {platform.machine()}: the test image was made for x86_64 only")
    if not Path("/dev/net/tun").exists():
        raise Failure("no /dev/net/tun: instances could not be wired", "in a container: pass that device in")
    for setting, device, why in NEEDED:
        refuse_if(asked_for(cfg, setting) and not Path(device).exists(), f"{told(cfg, setting)}: no {device}, and {why}")
    check_virtualization(cfg.LIBVIRT_TYPE)
    if (free := psutil.virtual_memory().available) < 3 << 30:
        raise Failure(f"{free / 2**30:.1f} GiB of memory free, and a cloud needs 3", "end other programs first")
    needed = 1 if (cfg.DIR / "state/env/made-from").exists() else 4
    place = nearest(cfg.DIR)
    check_file_system(place)
    if not ROOT_MADE.exists() and not (shutil.which("apt-get") or shutil.which("mmdebstrap")):
        raise Failure("neither apt-get nor mmdebstrap is here to make a Debian in DIR with", "install mmdebstrap")
    if cfg.USE_SWIFT:
        check_attributes(place)
    if (free := shutil.disk_usage(place).free) < needed << 30:
        raise Failure(f"{free / 2**30:.1f} GiB of disk free at {place}, and a cloud needs {needed}", "make room first")
    if (wanted := int(cfg.VOLUMES_SIZE)) > (free >> 30) - needed and not is_kept():  # else it has that room
        raise Failure(f"VOLUMES_SIZE={wanted}: {free / 2**30:.1f} GiB of disk free at {place}; the rest needs {needed}", code=2)
    check_ports(cfg)
    url = urllib.parse.urlsplit(cfg.LDAP_URL)
    if cfg.DIRECTORY == "yours" and not answers(f"{url.hostname}:{url.port or {'ldap': 389, 'ldaps': 636}[url.scheme]}"):
        raise Failure(f"LDAP_URL={cfg.LDAP_URL}: nobody answers there", code=2)
    if taken := sorted({*BRIDGES, "ovs-system"} & set(netifaces.interfaces())):
        raise Failure(f"this machine has an interface {taken[0]}{holder(taken[0])}, and a cloud makes its own", "remove it first")


# What nova.py kept on the machine when it still installed packages there.
OLDER = Path("/var/lib/nova.py")


def check_older_clouds() -> None:
    """A cloud of 0.1 has its packages on the machine, and only 0.1 knows which these are."""
    if folders := [folder for folder in kept(OLDER / "clouds.json") if Path(folder).exists()]:
        way = f"take it away with that version: git checkout 01ce487; sudo python3 nova.py uninstall {folders[0]}"
        raise Failure(f"an older nova.py (0.1) has installed packages on this machine for the cloud in {folders[0]}", way)


def check_file_system(place: Path) -> None:
    """The file system of DIR can hold programs, sudo among them, and files of several owners."""
    flags = os.statvfs(place).f_flag
    for flag, name in ((os.ST_NOEXEC, "noexec"), (os.ST_NOSUID, "nosuid"), (os.ST_RDONLY, "read-only")):
        refuse_if(flags & flag, f"{place} is on a file system that is mounted {name}, and the cloud's programs are to be there")
    refuse_if(not has_owners(place), f"{place} is on a file system whose files have no owners, and the cloud's have several")
    for name, number in NUMBERS.items():
        with contextlib.suppress(KeyError):
            taken = pwd.getpwuid(number).pw_name
            raise Failure(f"the user {taken} of this machine has the number {number}, which is the cloud's {name}'s", code=2)


def has_owners(place: Path) -> bool:
    """Can a file there be given to somebody?"""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            os.fchown(file.fileno(), NUMBERS[USER], NUMBERS[USER])
            return os.fstat(file.fileno()).st_uid == NUMBERS[USER]
    except OSError:
        return False


def holder(tap: str) -> str:
    """Whose it is, where it is a program's."""
    for file in Path("/proc").glob("[0-9]*/fdinfo/*"):
        if f"iff:\t{tap}\n" in text_of(file):
            return f" (of {program_of(file.parts[-3])}, pid {file.parts[-3]})"
    return ""


def check_attributes(place: Path) -> None:
    """What swift knows of an object is in extended attributes of its file, which not every file system has."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            os.setxattr(file.fileno(), "user.swift", b"")
    except OSError as error:
        why = f"swift needs a file system with extended attributes, and {place} is on one without ({error.strerror})"
        raise Failure(f"USE_SWIFT=1: {why}", code=2) from None


def check_virtualization(kind: str) -> None:
    """KVM runs a guest here: that the device is there proves nothing; the kernel has what libvirt puts containers into."""
    if kind == "kvm":
        probe = ("timeout", "--signal=KILL", 5, sys.executable, HERE / "conf/kvm-probe.py")
        slow = "a guest that needs a tenth of a second has not ended after five"
        said = ask(*probe, ok=(0, 1), default=slow, outside=True)
        refuse_if(said != "it ran", f"LIBVIRT_TYPE=kvm: /dev/kvm is there but does not work ({said})", "use qemu")
    if kind == "lxc" and not has_cgroup2():
        known, why = text_of("/proc/cgroups"), f"no control groups {', '.join(CONTROLLERS)}, and libvirt puts containers there"
        there = all(re.search(rf"^{name}\t[1-9]", known, re.M) for name in CONTROLLERS)
        refuse_if(not there, f"LIBVIRT_TYPE=lxc: {why}", "use qemu")


def check_ports(cfg: Settings) -> None:
    """Every port that a service will listen on is free."""
    places = " ".join(render(f"{window.ready} {window.command}", cfg) for window in windows(cfg))
    wanted = {int(port) for port in re.findall(r":(\d+)", places)} | {PATHS["RABBIT_DIST_PORT"], PATHS["EPMD_PORT"]}
    wanted |= set(CONSOLE_PORTS if cfg.CONSOLES else ())
    for connection in sorted(psutil.net_connections("tcp"), key=lambda each: getattr(each.laddr, "port", 0)):
        port = connection.laddr.port if connection.laddr else 0
        if connection.status == psutil.CONN_LISTEN and port in wanted:
            name = program_of(connection.pid or 0) or "a program that cannot be seen"
            whose = cloud_named(connection.pid) or f"{name}, pid {connection.pid}"
            raise Failure(f"port {port} is in use by {whose}", "end that first")


def cloud_named(process: int | None) -> str:
    """A process's cloud in a user's words; "" where it belongs to none."""
    if not process or not (found := cloud_of(process)):
        return ""
    known = settings_of_run(f"/proc/{process}/root{HOME}")  # as that process sees it
    return f"the cloud in {found.partition(' ')[2]} (session {known.SCREEN_NAME})"


def other_cloud() -> str:
    """Another cloud that is up: its ports and bridges have the names that ours would have."""
    wired = {process.pid for process in psutil.process_iter() if network_of(process.pid) == network_of("self")}
    return cloud_named(next((pid for pid in wired if cloud_of(pid) not in ("", cloud_of("self"))), None))


def network_of(process: int | str) -> str:
    """Which network namespace a process is in: what a container on this machine does is its own."""
    with contextlib.suppress(OSError):  # it has ended
        return os.readlink(f"/proc/{process}/ns/net")
    return ""


# ---- branch ----


NOVAS_HOME = "https://opendev.org/openstack/nova"

# SOURCE looks like                                              and is (branch: what that needs)
SOURCES = (
    (r"(pypi:nova)?",                                              "locked"),
    (r"pypi:nova==(?P<ref>[\w.]+)",                                "pypi"),
    (r"(?P<url>lp:nova)",                                          "moved"),
    (r"git\+(?P<url>[\w+]+://[^/]*/[^@]*)(@(?P<ref>[\w./-]+))?",   "git"),
    (r"(?P<url>https?://[^/]*/[^@]*\.git)(@(?P<ref>[\w./-]+))?",   "git"),
    (r"bzr\+(?!ssh:)(?P<url>\w+://.+)",                            "bzr"),
    (r"(?P<url>(lp:|bzr\+ssh://).+)",                              "bzr"),
)  # fmt: skip


class Source(NamedTuple):
    """What branch is asked for: a kind of SOURCES, or folder or tarball; where it is, and which of what is there."""

    kind: str
    url: str = ""
    ref: str = ""


def source_from(word: str) -> Source:
    """SOURCE by its form; Failure with code 2 for one that there is not."""
    helper = "leave it to git's credential helper, or use ssh"
    refuse_if(re.search("//[^/]*:[^/]*@", word), "SOURCE: a password has no place in a command line", helper)
    for form, kind in SOURCES:
        if found := re.fullmatch(form, word):
            return Source(kind, **{name: text or "" for name, text in found.groupdict().items()})
    path = Path(word).resolve()
    if path.is_file():
        return Source("tarball", str(path))
    if path.is_dir():
        return Source("bzr" if (path / ".bzr").exists() else "folder", str(path))
    forms = "pypi:nova[==VERSION], git+URL[@REF], https://....git[@REF], bzr+URL, lp:..., or the path of a folder or a tarball"
    raise Failure(f"SOURCE {word}: there is no such path; it can be {forms}", "DIR comes second: branch pypi:nova DIR", code=2)


def branch(cfg: Settings, word: str = "") -> None:
    """Put nova's source into DIR: there it runs, edit it there."""
    source = source_from(word)
    if lost := changes():
        what = f"{len(lost)} changes in {cfg.DIR} would be lost: {', '.join(lost[:5])}"
        raise Failure(f"Refusing to branch ({what})", f"keep what you need, remove {cfg.DIR}/state/tree.json, branch again")
    if running := processes():
        what = f"{len(running)} processes of the cloud run from {cfg.DIR}"
        raise Failure(f"Refusing to branch ({what})", "terminate and clean first")
    if source.kind == "moved":
        say(f"{source.url}: Launchpad ended Bazaar hosting; nova lives at {NOVAS_HOME} now, so it comes from there")
        source = Source("git", NOVAS_HOME)
    is_git = source.kind == "git" or (source.kind == "folder" and Path(source.url, ".git").exists())
    if needed := {"git"} if is_git else {"brz"} if source.kind == "bzr" else set():
        make_root(cfg)
        install_packages(needed)
    replace_tree(cfg, source, word)


def replace_tree(cfg: Settings, source: Source, word: str) -> None:
    """The tree in DIR is the source's from now on."""
    with step("Fetch nova's source"):
        fresh = fetch(cfg, source)
        if not DRY_RUN:
            check_tree(fresh, word)
    with step(f"Put it into {cfg.DIR}"):
        old = " ".join(f"{HOME}/{name}" for name in tree()["top"])
        change(f"rm --recursive --force {old}; mv --target-directory={HOME} {fresh}/*", lambda: put_tree(fresh))


def fetch(cfg: Settings, source: Source) -> Path:
    """Where the tree is now, with what its version control knows of it."""
    kind, url, ref = source
    more = dict[str, Any](env={"GIT_TERMINAL_PROMPT": "0"}, hint="check SOURCE and the network")
    fresh = STATE / "branch/nova"
    remove(fresh.parent)
    make_folder(fresh.parent)
    if kind == "git":
        commit = re.fullmatch("[0-9a-f]{40}", ref)  # clone takes names only
        name = ("--branch", ref) if ref and not commit else ()
        call = caller_of("git")
        call("git", "clone", "--quiet", "--depth=1", *name, "--", url, fresh, **more)
        if commit:
            call("git", "-C", fresh, "fetch", "--quiet", "--depth=1", "origin", ref, **more)
            call("git", "-C", fresh, "checkout", "--quiet", "--detach", ref)
    elif kind == "bzr":
        caller_of("brz")("brz", "branch", "--quiet", "--", url, fresh, **more)
    elif kind == "folder":
        refuse_if(cfg.DIR.resolve().is_relative_to(url), f"SOURCE {url}: {cfg.DIR} is inside of it", "name a DIR elsewhere")
        do_outside("cp", "--archive", "--reflink=auto", "--no-target-directory", url, fresh)
        if (fresh / ".git").is_file():  # of a linked work tree: what is committed here would change that one
            remove(fresh / ".git")
    else:
        make_folder(fresh)
        packed = url or released(ref)
        do_outside("tar", "--extract", "--no-same-owner", "--file", packed, "--directory", fresh)
        if len(inside := [fresh / "nova-*"] if DRY_RUN else list(fresh.iterdir())) == 1:
            return inside[0]
    return fresh


def caller_of(program: str) -> Callable[..., None]:
    """Who calls git or brz: do_outside where the machine has it, because that one knows its owner's keys and paths."""
    return do_outside if shutil.which(program, path=PLAIN["PATH"]) else do


def released(version: str) -> Path:
    """The release from PyPI: the one of uv.lock, or another as the user's own index names it, hash included."""
    packed = STATE / "cache/nova.tar.gz"
    make_folder(packed.parent)
    fetch = (sys.executable, LIBEXEC / "fetch-release.py", "nova", r"\.tar\.gz$", packed, *filter(None, [version]))
    try:
        do_outside(*fetch, hint="check SOURCE and the network")
    except Failure as failure:
        refuse_if("names no source" in str(failure.tail), f"SOURCE pypi:nova=={version}: {failure.tail[-1]}, so no such release")
        raise
    return packed


def check_tree(fresh: Path, word: str) -> None:
    """It is a nova that can run here, and has no file where nova.py keeps its own."""
    setup = "".join(path.read_text() for name in ("setup.cfg", "pyproject.toml") if (path := fresh / name).is_file())
    is_nova = re.search(r'^name *= *"?nova"?$', setup, re.M)
    refuse_if(not is_nova, f"SOURCE {word}: no nova in it (its setup.cfg does not say so)")
    module = "nova/wsgi/osapi_compute.py"
    refuse_if(not (fresh / module).exists(), f"SOURCE {word}: too old to run here (it has no {module}, as from 2024.2 on)")
    taken = sorted(OWN & {path.name for path in fresh.iterdir()})
    refuse_if(taken, f"SOURCE {word}: it has {', '.join(taken)}, where nova.py keeps its own")


# What nova.py keeps in DIR beside the tree.
OWN = {"state", "instances", "images", "novarc", "demorc", "clouds.yaml"}
# {"whole": bool, "top": names in DIR, "files": {path in DIR: SHA-256 as branched}, "commits": git's as branched}
TREE = STATE / "tree.json"


def tree() -> dict[str, Any]:
    """What branch put into DIR."""
    return kept(TREE) or {"whole": False, "top": [], "files": {}}


def put_tree(fresh: Path) -> None:
    """Replace the tree in DIR by `fresh`, leaving what nova.py keeps beside it, and note what each file was."""
    names = sorted(path.name for path in fresh.iterdir())
    code = [fresh / name for name in names if name not in CONTROLLED]
    do_outside("chmod", "--recursive", "go+rX", *code)  # services, which are not its owner, read it
    if (fresh / ".git").is_dir():
        with open(fresh / ".git/info/exclude", "a") as file:
            file.write("".join(f"/{name}\n" for name in sorted(OWN)) + "*.pyc\n*.egg-info/\n")
    both = sorted({*names, *tree()["top"]})
    write_file(TREE, json.dumps({"whole": False, "top": both, "files": {}}))  # cut off here, branch begins again
    unlink(*(HOME / name for name in both))
    for path in (HOME, *fresh.rglob("*")):
        give(path, "caller")
    for path in fresh.iterdir():
        path.rename(HOME / path.name)
    (ENV / "made-from").unlink(missing_ok=True)  # with the tree that was here
    write_file(TREE, json.dumps({"whole": True, "top": names, "files": {}}))
    files = {str(path.relative_to(HOME)): digest(path) for path in tree_files()}
    commits = git("rev-parse", *BRANCHES) if (HOME / ".git").exists() else []
    write_file(TREE, json.dumps({"whole": True, "top": names, "files": files, "commits": commits}))


CONTROLLED = (".git", ".bzr")  # version control's own: no files of the tree, but for the one that a commit changes
COMMITTED = HOME / ".bzr/branch/last-revision"
BRANCHES = ("HEAD", "--exclude=refs/tags/*", "--all")


def tree_files() -> list[Path]:
    """The tree's files, but for what Python makes by itself."""
    tops = [HOME / name for name in tree()["top"]]
    files = [path for top in tops if top.name not in CONTROLLED for path in (top, *top.rglob("*")) if path.is_file()]
    files += [COMMITTED] if COMMITTED.exists() else []
    return [path for path in files if path.suffix != ".pyc" and ".egg-info" not in str(path)]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changes() -> list[str]:
    """What would be lost with the tree: files changed or new since branch; with git, but for those that a remote has."""
    if not (known := tree())["whole"]:
        return []
    now = {str(path.relative_to(HOME)): digest(path) for path in tree_files()}
    changed = sorted(name for name, was in now.items() if known["files"].get(name) != was)
    if not (HOME / ".git").exists():
        return changed
    said = "\n".join(git("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all"))
    loose = {entry.split(maxsplit=1)[1] for entry in said.split("\0") if entry}
    commits = git("log", "--format=commit %h %s", *BRANCHES, "--not", "--remotes", *known.get("commits", ()))
    return [name for name in changed if name in loose] + commits


def git(*words: object, default: str | None = None) -> list[str]:
    """What git says of the tree in DIR: asked as its owner, since a repository's configuration may name commands."""
    owner = (HOME / ".git").stat()
    as_owner = ("setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups", "env", "HOME=/")
    return ask(*as_owner, "git", "--no-optional-locks", "-C", HOME, *words, default=default).splitlines()


# ---- install ----


def install(cfg: Settings, for_a_new_one: bool = False) -> None:
    """Everything a cloud needs: packages, OpenStack's environment, databases, image. Goes on where it stopped."""
    refuse_if_running(cfg)
    end_what_was_left(cfg)
    check_machine(cfg)
    if for_a_new_one:
        remove(KEPT)  # from now on there is nothing to start
    fetched = [] if tree()["whole"] else [lambda: replace_tree(cfg, source_from(""), "")]
    packages = {name for service in services(cfg).values() for name in service.packages}
    in_parallel(lambda: make_root(cfg), install_client, *fetched)

    def install_rest() -> None:
        install_packages(packages)
        for name in images(cfg).keys() - {"ami-tty"}:  # whose builder is a package
            build_image(name, IMAGES[name])

    others = (lambda: unpack_novnc(cfg), lambda: fetch_image(cfg), lambda: build_image("ami-tty", IMAGES["ami-tty"]))
    in_parallel(lambda: prepare_openstack(cfg), install_rest, *others)
    share_screen()
    if (APT / "srcpkgcache.bin").exists():  # apt was at work; what it keeps of that, and what came, takes 190 MB
        do("apt-get", "clean")
    link_plugins()


def prepare_openstack(cfg: Settings) -> None:
    """OpenStack in its environment, configured, compiled, and with filled databases."""
    install_openstack(cfg)
    use_elsewhere(cfg)
    make_folders(cfg)
    write_config(cfg)
    compile_openstack()
    make_databases(cfg)


RELEASE = "trixie"  # Debian 13
ROOT_MADE = STATE / "root.made-from"  # there when the first packages of ROOTFS are installed
# What is unpacked at once, beside what every Debian has: OpenStack is installed, and its databases made, while dpkg is at work.
FIRST = ("apt", "ca-certificates", "passwd", "python3", *sorted(SERVICES["mariadb"].packages))
APT = STATE / "cache/apt"
# Packages ask nothing, and find what libexec/make-root has for them in the place of an init system.
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "PATH": f"/usr/local/sbin:{PLAIN['PATH']}"}


def make_root(cfg: Settings) -> None:
    """The Debian in DIR, unpacked; made once, where it was cut off anew: libexec/make-root."""
    if text_of(ROOT_MADE) == RELEASE:
        return
    with step(f"Make a Debian ({RELEASE}) in DIR"):
        remove(ROOTFS)
        do_outside(LIBEXEC / "make-root", ROOTFS, APT, cfg.DEBIAN_MIRROR, *FIRST, hint=NETWORK)
        for name in ("run/nova.py", "run/lock", "srv/nova.py"):
            make_folder(ROOTFS / name)
        mount_root(cfg)
        write_machine_files()
        make_users()
        if package_states():  # by mmdebstrap it is installed
            write_file(ROOT_MADE, RELEASE)


def install_packages(names: set[str]) -> None:
    """What is missing of these packages in ROOTFS, with what they need."""
    states = package_states()
    if not states:
        make_once(ROOT_MADE, RELEASE, functools.partial(install_unpacked, names))
        return
    missing = sorted(names - {name for name, state in states.items() if state == "install ok installed"})
    halves = [name for name, state in states.items() if state.split()[-1] not in ("installed", "config-files")]
    if not missing and not halves:
        return
    with step(f"Install {len(missing)} packages and what they need"):
        make_folder(APT / "archives/partial")  # whoever needs room may have deleted the cache
        if halves:  # of a call that was cut off
            do("dpkg", "--configure", "-a", env=QUIET)
        if (lists := stat_of(ROOTFS / "var/lib/apt/lists")) and lists.st_mtime < time.time() - 3600:
            do("apt-get", "-qq", "update", hint=NETWORK)
        do("apt-get", "-qq", "-y", "install", *missing, env=QUIET, hint=NETWORK)


def install_unpacked(names: set[str]) -> None:
    """What is unpacked is installed as packages are to be, while these come; then they. (apt calls dpkg a dozen times.)"""
    with step(f"Install {len(names)} packages and what they need"):
        words = ("--download-only", "install", "?essential", *FIRST, *sorted(names))
        install = functools.partial(do, "dpkg", "--skip-same-version", "--force-depends", "--install", "--recursive", env=QUIET)
        in_parallel(
            lambda: install(APT / "first"),
            lambda: do_outside("apt-get", "-qq", "-y", *words, env={"APT_CONFIG": str(APT / "conf")}, hint=NETWORK),
        )
        install(APT / "archives")
        write_machine_files()  # the package of ca-certificates has put Debian's in their place
        do("touch", "/var/lib/apt/lists")  # they came just now; the package of apt says that they are as old as it is
        remove(APT / "first")


def package_states() -> dict[str, str]:
    """What the dpkg of ROOTFS knows: each package's name and its state, of three words."""
    found = re.findall(r"^Package: (\S+)\nStatus: (.*)$", text_of(ROOTFS / "var/lib/dpkg/status"), re.M)
    return dict(found)


def install_openstack(cfg: Settings) -> None:
    """OpenStack's environment from the lock file, with the tree in DIR as its nova; then what settings add to it."""
    files = (HERE / "uv.lock", *(HOME / name for name in ("setup.cfg", "pyproject.toml", "requirements.txt")))
    key = "".join(digest(path) for path in files if path.exists())
    make_once(ENV / "made-from", key, make_environment)
    for service in services(cfg).values():
        if service.group:
            more = functools.partial(add_group, service.group, STATE / service.environment)
            make_once(ENV / f"made-from-{service.group}", key, more)


def make_environment() -> None:
    """All of it, anew; nova by its path (compat): setuptools' own finder costs every start of this Python 10 ms."""
    with step("Install OpenStack's environment"):
        empty_environment(ENV)
        editable = ("--no-build-isolation", "--no-deps", "--config-settings", "editable_mode=compat", "--editable", HOME)
        # First, because it looks at every file that is in DIR by then.
        uv("pip", "install", "--python", ENV, *editable, env={"PBR_VERSION": tree_version()})
        install_group("cloud", ENV, "--no-emit-package", "nova")
        other = f"this tree wants other libraries than uv.lock has: branch another version, or edit {HOME}/requirements.txt"
        try:
            uv("pip", "check", "--python", ENV, hint=other)
        except Failure as failure:
            if [line for line in failure.tail if line.startswith("The package ")] != [LEFT_OUT]:
                raise


LEFT_OUT = "The package `websockify` requires `numpy`, but it's not installed"  # on purpose: pyproject.toml


def empty_environment(place: Path) -> None:
    """One with python3 of ROOTFS, whose modules it sees (libvirt's, ldap's), and what builds what has no wheel."""
    uv("venv", "--clear", "--relocatable", "--system-site-packages", "--python", "/usr/bin/python3", place)
    install_group("cloud-build", place)


def install_client() -> None:
    """The openstack command, for this machine's python3: for every user of the machine."""

    def make() -> None:
        with step("Install the openstack command"):
            uv("venv", "--clear", "--relocatable", "--python", sys._base_executable, CLIENT, outside=True)  # type: ignore[attr-defined]
            install_group("client", CLIENT, outside=True)

    make_once(CLIENT / "made-from", digest(HERE / "uv.lock"), make)


def tree_version() -> str:
    """For pbr, which would ask git, as root; a shallow clone has no tag: then it is the version of uv.lock."""
    if found := re.search(r"^Version: (\S+)$", text_of(HOME / "PKG-INFO"), re.M):
        return found[1]
    tags = git("describe", "--tags", "--abbrev=0", default="") if (HOME / ".git").exists() else []
    return tags[0] if tags else re.findall('^name = "nova"\nversion = "(.*)"$', text_of(HERE / "uv.lock"), re.M)[0]


def add_group(group: str, place: Path) -> None:
    """What only a setting asks for, into the environment that is there, or into one of its own."""
    with step(f"Install OpenStack's environment for {group}"):
        if place != ENV:
            empty_environment(place)
        install_group(group, place)
        compile_python(site_packages(place))


def install_group(group: str, place: Path, *but: str, outside: bool = False) -> None:
    """A group of pyproject.toml, as uv.lock has it."""
    wanted = STATE / f"cache/{place.name}.txt"
    uv("export", "--frozen", "--only-group", group, *but, "--output-file", wanted, outside=outside)
    # --no-deps: the lock has them all, also where pyproject.toml corrects what a package says of itself.
    build = ("--no-build-isolation", "--no-deps")
    uv("pip", "install", "--python", place, *build, "--require-hashes", "--requirements", wanted, outside=outside)


TRUSTED = "etc/ssl/nova-py.crt"  # what the machine trusts, where no package of ROOTFS writes: libexec/machine-files.py


def uv(*words: object, env: Mapping[str, str] = {}, hint: str = NETWORK, outside: bool = False) -> None:
    """A call of uv for one of the cloud's environments."""
    own = {"UV_SYSTEM_CERTS": "1", "UV_CACHE_DIR": str(STATE / "cache/uv"), **env}
    if not outside and (ROOTFS / TRUSTED).exists():
        own["SSL_CERT_FILE"] = f"/{TRUSTED}"
    run, place, program = (do_outside, HERE, TOOL / "uv") if outside else (do, CLONE, CLONE / ".tool/uv")
    run(program, "--quiet", "--no-config", *words, cwd=place, env=own, hint=hint)


def site_packages(place: Path) -> Path:
    """Where an environment's modules are."""
    return next(place.glob("lib/python3*/site-packages"), place / "lib/python3.13/site-packages")


def compile_python(*folders: Path) -> None:
    """But for what no service imports: a third of it."""
    unused = "tests|testing|pygments|redis|setuptools|xmlschema|elementpath|saml2|ofproto|os_ken/services|distutils"
    unused += "|openstackclient|osc_lib|cmd2|prompt_toolkit|wcwidth|rich|markdown_it|manilaclient|designateclient|barbicanclient"
    unused += "|osc_placement|ncclient|oauthlib|fixtures|werkzeug|pydot|rich_argparse"
    do(ENV / "bin/python", "-m", "compileall", "-qj2", f"-x/({unused})/", *folders)


def make_once(made_from: Path, key: str, make: Callable[[], None]) -> None:
    """Call `make`, unless what it makes was made from the same before; where it was cut off, it makes all anew."""
    if text_of(made_from) != key:
        remove(made_from)
        make()
        write_file(made_from, key)


def make_users() -> None:
    """The users of ROOTFS that own the cloud's processes; before the packages, which would make some with other numbers."""
    for user in (USER, GUEST_USER):
        more = ("--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin")
        do("useradd", "--uid", NUMBERS[user], *more, user)
    group = PRIVSEP.partition(":")[2]
    do("groupadd", "--gid", NUMBERS[group], group)


def link_plugins() -> None:
    """RabbitMQ's plugins, where it finds its modules at once."""
    link = functools.partial(do, "sh", CLONE / "libexec/link-rabbit-plugins", STATE / "rabbit-plugins")
    make_once(STATE / "rabbit-plugins.made-from", RELEASE, link)


def make_folders(cfg: Settings) -> None:
    """Folders, the settings for later, and passwords: what is there stays as it is."""
    for service in services(cfg).values():
        for name, owner in service.folders.items():
            own_folder(HOME / name, USERS[owner], {"service": 0o700, "privsep": 0o711}.get(owner, 0o755))
    plain = {k: v for k, v in asdict(cfg).items() if k not in (*SECRETS, "DIR")}
    write_file(STATE / "settings.json", json.dumps(plain, indent=1), 0o600)  # IMAGE's URL may hold a token
    known = passwords(STATE)
    for name in SECRETS:
        known[name] = getattr(cfg, name) or known.get(name) or secrets.token_urlsafe(24)
    write_file(STATE / "passwords.json", json.dumps(known, indent=1), 0o600)


def own_folder(path: Path, owner: str, mode: int) -> None:
    """A folder that is this user's."""

    def make() -> None:
        path.mkdir(parents=True, exist_ok=True)
        give(path, owner)
        path.chmod(mode)

    change(f"# make the folder {path} ({owner}, {mode:o})", make)


def use_elsewhere(cfg: Settings) -> None:
    """A folder of our own below INSTANCES_PATH and LOCK_PATH is where the cloud looks, whoever may enter the folders above it."""
    for name, folder in ELSEWHERE:
        if value := getattr(cfg, name):
            own, place = Path(value).resolve() / f"{'-'.join(cfg.DIR.parts[1:])}-{Path(folder).name}", HOME / folder
            for missing in [path for path in own.parents if not path.exists()][::-1]:
                record("rmdir", missing, lasting=True, outside=True)
            record("rm", "--recursive", "--force", own, lasting=True, outside=True)
            make_folder(own)
            make_folder(place)
            mount("--bind", own, place)


def write_config(cfg: Settings) -> None:
    """Every service's configuration from its template."""
    for service in services(cfg).values():
        for name, (path, mode, owner) in service.files.items():
            text = (HERE / name).read_text()
            write_file(Path(render(path, cfg)), render(text, cfg) if name.endswith(".tmpl") else text, mode, USERS[owner])
    for name in ("fernet/0", "fernet/1", "credential/0", "credential/1"):
        if not (place := STATE / "keystone" / name).exists():
            write_file(place, urlsafe_b64encode(secrets.token_bytes(32)), 0o600, USER)


WRITTEN_INTO_DATABASES = (
    *("HOSTNAME", "HOST_IP", "ADMIN_PASSWORD", "SERVICE_PASSWORD", "DEMO_PASSWORD", "EC2_ACCESS_KEY", "EC2_SECRET_KEY", "CELL"),
    "QUOTA_GIGABYTES",  # cinder keeps its default quotas there
)


def compile_openstack() -> None:
    """Once for all processes, so that none of them does it at its start."""

    def compile_all() -> None:
        with step("Compile OpenStack"):
            compile_python(site_packages(ENV), HOME / "nova")

    make_once(ENV / "compiled-from", f"{RELEASE} {text_of(ENV / 'made-from')}", compile_all)


def make_databases(cfg: Settings) -> None:
    """Filled databases, made once and copied by every run: their content depends on what `key` is made of alone."""
    chosen = [values(cfg)[name] for name in WRITTEN_INTO_DATABASES]
    files = [digest(HERE / name) for name in ("uv.lock", "conf/map-host.py")]
    tables = [(*service.databases, *service.fill, *service.endpoint) for service in services(cfg).values()] + [*ACCOUNTS]
    parts = (files, migrations(), chosen, ask("mariadbd", "--version"), tables, bool(cfg.DIRECTORY))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    make_once(kept_databases(cfg).with_suffix(".made-from"), key, lambda: fill_databases(cfg))


def migrations() -> list[str]:
    """What makes nova's tables, as the tree has it."""
    return [digest(path) for path in sorted((HOME / "nova/db").rglob("*.py"))]


def kept_databases(cfg: Settings) -> Path:
    """Where the filled ones are; those of USE_MYSQL=0 beside those of USE_MYSQL=1, so that both stay."""
    return STATE / "cache" / ("mysql" if cfg.USE_MYSQL else "sqlite")


def fill_databases(cfg: Settings) -> None:
    """A server for the time of it, and each database's own commands side by side; then out of the services' way."""
    place, kept = STATE / "databases", kept_databases(cfg)
    if is_kept():
        why = f"the cloud in {cfg.DIR} has its own, where they would be made"
        raise Failure(f"Refusing to make new databases ({why})", "start that cloud, or make a new one: run_detached")
    do("rm", "--recursive", "--force", kept, place)
    for folder in (place, place / "sqlite"):
        own_folder(folder, USER, 0o700)
    with step("Make the databases"):
        empty = ("--auth-root-authentication-method=socket", "--skip-test-db")
        do("mariadb-install-db", "--no-defaults", f"--datadir={place}/mysql", *empty, user=USER)
        with started(cfg, WINDOWS["preload"]), started(cfg, WINDOWS["mysql"], "--innodb-flush-log-at-trx-commit=0"):
            in_parallel(*(functools.partial(fill_database, cfg, each) for each in services(cfg).values() if each.databases))
            with started(cfg, WINDOWS["keystone"]):
                register_services(cfg)
                create_accounts(cfg)
        do(*COPY, place, kept)  # sparse, half of the size
        do("rm", "--recursive", "--force", place)


@contextlib.contextmanager
def started(cfg: Settings, window: Window, *more: str) -> Iterator[None]:
    """A service for the length of a with, without a window."""
    out, user = STATE / f"log/{window.name}-install.log", USERS[window.user]
    line = (
        f". {CONF}/window; exec setpriv --reuid={user} --regid={user} --init-groups {render(window.line, cfg)} {' '.join(more)}"
    )
    options: Any = dict(_in="", _out=str(out), _err_to_out=True, _tty_out=False, _bg=True, _bg_exc=False, _env=surroundings())
    words = ["bash", "-c", line]
    process = change(f"{as_line({}, 'enter ', words)} &", lambda: command(entered(words), **options))

    def end() -> None:
        with contextlib.suppress(ProcessLookupError, sh.ErrorReturnCode):
            process.terminate()
            process.wait()

    try:
        wait_for(window.name, render(window.ready, cfg), 60)
        yield
    finally:
        change(f"# end {window.name}", end)


@by_api
def register_services(cfg: Settings) -> None:
    """Fill keystone's catalog: each service's user and its address."""
    identity, known = cloud(cfg).identity, values(cfg)
    project = identity.create_project(name="service", domain_id="default")
    roles = [identity.find_role(name) for name in ("admin", "service")]
    for name, kind, template in ((name, *each.endpoint) for name, each in services(cfg).items() if each.endpoint[0]):
        always = {"ignore_lockout_failure_attempts": True}  # whoever guesses (conf/keystone.conf.tmpl) does not stop the cloud
        user = identity.create_user(name=name, domain_id="default", password=known["SERVICE_PASSWORD"], options=always)
        for role in roles:
            identity.assign_project_role_to_user(project, user, role)
        service = identity.create_service(name=name, type=kind)
        where = dict(service_id=service.id, region_id="RegionOne", url=render(template, cfg))
        for interface in ("public", "internal"):
            identity.create_endpoint(interface=interface, **where)
    keys = json.dumps({"access": known["EC2_ACCESS_KEY"], "secret": known["EC2_SECRET_KEY"]})
    whose = dict(user_id=cloud(cfg).current_user_id, project_id=cloud(cfg).current_project_id)
    identity.create_credential(type="ec2", blob=keys, **whose)
    if cfg.DIRECTORY:
        identity.create_domain(name="ldap")


@by_api
def create_accounts(cfg: Settings) -> None:
    """Create the projects and users of ACCOUNTS, and the role by which swift lets its holder into every project's containers."""
    identity, more = cloud(cfg).identity, {"domain_id": "default"}
    password = values(cfg)["DEMO_PASSWORD"]
    roles = {name: identity.find_role(name) for name in ("admin", "member", "reader")}
    projects = {name: identity.create_project(name=name, **more) for name in ("demo", "alt_demo")}
    users = {"admin": identity.find_user("admin")}
    for name, place, kind in ACCOUNTS:
        if name not in users:
            users[name] = identity.create_user(name=name, password=password, **more)
        if place == "system":
            identity.assign_system_role_to_user(users[name], roles[kind], "all")
        else:
            identity.assign_project_role_to_user(projects[place], users[name], roles[kind])
    if cfg.USE_SWIFT:
        identity.create_role(name="ResellerAdmin")
    cloud.cache_clear()  # its token names the catalog as it was


def fill_database(cfg: Settings, service: Service) -> None:
    """Create the databases and run the commands that make their tables."""
    # keystone-manage bootstrap reads these: a password has no place in argv.
    urls = {f"OS_BOOTSTRAP_{kind}_URL": f"http://{cfg.HOST_IP}:5000/v3" for kind in ("PUBLIC", "INTERNAL")}
    env = {**urls, "OS_BOOTSTRAP_REGION_ID": "RegionOne", "OS_BOOTSTRAP_PASSWORD": values(cfg)["ADMIN_PASSWORD"]}
    env |= {"PATH": f"{ENV}/bin:{PLAIN['PATH']}"}
    env |= {"OS_NOVA_DISABLE_EVENTLET_PATCHING": "1"}  # or nova-manage wants eventlet, which preload has not
    for name in service.databases if cfg.USE_MYSQL else {"neutron"} & {*service.databases}:  # SQLite makes its files by itself
        do("mariadb", "--no-defaults", f"--socket={STATE}/mysql/sock", text=f"CREATE DATABASE {name};")
    for command in service.fill:
        program, *arguments = shlex.split(render(command, cfg))
        do(ENV / "bin" / program, *arguments, user=USER, env=env, cwd=STATE)


def build_image(name: str, image: dict[str, Any]) -> None:
    """The three parts of an image, from Debian's packages."""
    program, place = HERE / image["builder"], HOME / image["folder"]

    def build() -> None:
        with step(f"Build the image {name}"):
            do("python3", CLONE / image["builder"], place, CLOUD["kernel"], hint=NETWORK)

    key = "".join(digest(path) for path in sorted(program.parent.rglob("*")) if path.is_file())
    make_once(place / "made-from", key + RELEASE + CLOUD["kernel"], build)


def image_file(cfg: Settings) -> Path:
    """Where the bytes of IMAGE are: a URL's in our cache, a path's where our caller sees it (libvirt's are our own)."""
    if asked_for(cfg, "IMAGE=debian"):
        return HOME / "images/debian/root.qcow2"
    if "://" in cfg.IMAGE:
        return STATE / f"cache/image-{hashlib.sha256(cfg.IMAGE.encode()).hexdigest()[:16]}"
    return Path(f"{CALLER}/root{Path(cfg.IMAGE).absolute()}")


def fetch_image(cfg: Settings) -> None:
    """IMAGE is here, and is an image."""
    path, url = image_file(cfg), urllib.parse.urldefrag(cfg.IMAGE)
    if "://" in cfg.IMAGE and not path.exists():
        shown = re.sub("//.*@", "//...@", url.url).partition("?")[0]  # for the log; what else is there may be a token
        if not url.fragment and url.url.startswith("http:"):
            say(f"IMAGE={shown}: nobody vouches for what comes by http; #sha256=HEX at its end would")
        with step(f"Download {shown}"):
            part = path.with_suffix(".part")
            if DRY_RUN:
                return print(f"curl --location --output {path} {url.url}")
            try:
                with urllib.request.urlopen(url.url, timeout=60) as answer, open(part, "wb") as file:
                    size = int(answer.headers.get("Content-Length", 0))
                    shutil.copyfileobj(BARS.wrap_file(answer, size, task_id=AT_WORK.bar), file)
                if size and part.stat().st_size != size:
                    raise OSError(f"cut off after {part.stat().st_size} of {size} bytes")
            except OSError as error:
                raise Failure(f"IMAGE={cfg.IMAGE}: {error}", NETWORK) from None
            if url.fragment and url.fragment.lower() != f"sha256={digest(part)}":
                raise Failure(f"IMAGE={cfg.IMAGE}: its SHA-256 is {digest(part)}")
            image_format(part)
            move(part, path)


def unpack_novnc(cfg: Settings) -> None:
    """noVNC's page without its package, which would bring nodejs and a proxy of its own: nova-novncproxy serves it."""
    page = STATE / "novnc"
    if not cfg.CONSOLES:
        return

    def unpack() -> None:
        with step("Unpack noVNC's page"):
            remove(page)
            make_folder(page)
            do("apt-get", "-qq", "download", "novnc", cwd=page, hint=NETWORK)
            do("dpkg-deb", "--extract", *([*page.glob("*.deb")] or [page / "novnc.deb"]), page)

    make_once(page / "made-from", RELEASE, unpack)


# ---- run ----


def run(cfg: Settings, yes: str = "") -> None:
    """Run a cloud for as long as its session lasts, then take it down."""
    with only_one("run") if not DRY_RUN else contextlib.nullcontext():
        run_detached(cfg, yes)
    if DRY_RUN:
        return print(f"screen -x {cfg.SCREEN_NAME} -p test\n# and when the session has ended: terminate, clean")
    BARS.stop()  # the terminal is screen's now
    if session(cfg):
        attach(cfg)
    if session(cfg):
        say("The cloud stays. To come back: sudo python3 nova.py attach")
        say("To end it: sudo python3 nova.py stop, which keeps it; or terminate, then clean")
    elif (STATE / "run/up").exists():  # else another call ended it: stop
        with only_one("run"):
            remove(KEPT)
            terminate(cfg)
            clean(cfg)


def run_detached(cfg: Settings, yes: str = "") -> None:
    """Start a new, empty cloud: every service in its own screen window."""
    refuse_if_running(cfg)
    tell_what_goes(cfg, yes)
    install(cfg, for_a_new_one=True)
    save_baseline()
    run_unit_tests(cfg)
    start_session(cfg)
    copied = is_new_kept(cfg)
    empty_databases(cfg, copied)
    use_volumes(cfg)
    start_servers(cfg)
    use_directory(cfg)
    create_bridges(cfg)
    start_control(cfg)
    if copied:
        route_private(cfg)
    else:
        make_new(cfg)
    start_workers(cfg)
    wait_for_hosts(cfg)
    smoke_test(cfg)
    note_new(cfg)
    keep(cfg)
    merge_memory(cfg)
    write_file(STATE / "run/up", "")
    say_how_to_use(cfg)


def start(cfg: Settings) -> None:
    """Bring back the cloud that is kept in DIR, as it was when it was stopped, or when whatever ended it did.

    The same steps as run_detached's, but for those that empty and create.
    """
    refuse_if_running(cfg)
    cfg = check_kept(cfg)
    end_what_was_left(cfg)
    check_machine(cfg)
    use_elsewhere(cfg)
    make_folders(cfg)
    write_config(cfg)
    start_session(cfg)
    empty([name for service in SERVICES.values() for name in service.ended])
    create_switch()
    use_volumes(cfg)
    start_servers(cfg)
    use_directory(cfg)
    create_bridges(cfg)
    start_control(cfg)
    route_private(cfg)
    ran = servers_that_ran(cfg) or []
    start_workers(cfg)
    wait_for_instances(cfg, ran)
    wait_for_hosts(cfg)  # not before: asked for its volume hosts, cinder waits a minute for a scheduler that is not there yet
    merge_memory(cfg)
    write_file(STATE / "run/up", "")
    say_how_to_use(cfg)


def run_unit_tests(cfg: Settings) -> None:
    """Where TEST asks for it, nova's own tests of the tree in DIR: a red one ends the run before a service starts."""
    if asked_for(cfg, "TEST"):
        script = (HERE / "conf/unit-tests.py").read_text()  # by standard input: its user need not reach our folder
        env = {"HOME": f"{STATE}/nova", "PYTHONDONTWRITEBYTECODE": "1", "OS_TEST_TIMEOUT": "160"}
        env |= {"OS_NOVA_DISABLE_EVENTLET_PATCHING": "True"}  # as services run it: with native threads
        with step("Run nova's unit tests"):
            red = f"mend the tree in {cfg.DIR}, or go on without TEST"
            do(ENV / "bin/python", "-", cfg.TEST, user=USER, text=script, env=env, cwd=HOME, hint=red)


def refuse_if_running(cfg: Settings) -> None:
    """nova.sh's refusal: a session of this name is there. One that a run of ours left half-made is no reason."""
    name, found, ours = cfg.SCREEN_NAME, session(cfg), processes()
    if not ours and other_cloud():
        check_ports(cfg)  # says whose they are
    if ours and (STATE / "run/up").exists():
        name = settings_of_run(str(HOME)).SCREEN_NAME
        end = "stop, which keeps it; or terminate, then clean"
        way = f"attach to it with: sudo python3 nova.py attach\n  end it with: sudo python3 nova.py {end}"
        raise Failure(f"screen named '{name}' already exists!", way)
    if found and found not in [process.pid for process in ours]:
        whose = cloud_of(found).partition(" ")[2] or "another program"
        raise Failure(f"screen named '{name}' already exists, of {whose}!", "choose another SCREEN_NAME, or end that one")


def end_what_was_left(cfg: Settings) -> None:
    """A run that was cut off, or a cloud that was cleaned but not scrubbed: take the rest down first."""
    if processes() or ((path := STATE / "record").exists() and path.stat().st_size):
        with step("Take down what an earlier run left"):
            take_down(cfg)
            remove_traces()


def keep(cfg: Settings) -> None:
    """From now on there is a cloud that start can bring back: what it was made with, and must have again, is noted."""
    chosen = {name: value for name, value in asdict(cfg).items() if name != "DIR"}
    facts = {**chosen, **passwords(STATE), "HOSTNAME": socket.gethostname(), "VERSIONS": versions(), "FOLDER": str(cfg.DIR)}
    write_file(KEPT, json.dumps(facts, indent=1), 0o600)


def versions() -> str:
    """What the databases' tables depend on: the environment's lock file, and the tree's migrations."""
    lock = text_of(ENV / "made-from")[:64] or "none"
    return hashlib.sha256(repr([lock, migrations()]).encode()).hexdigest()


def check_kept(cfg: Settings) -> Settings:
    """The settings of the cloud that start finds, whose machine and versions are still those that it was made with."""
    if not is_kept():
        raise Failure(f"no whole cloud in {cfg.DIR} to start", "make one: sudo python3 nova.py run_detached")
    was = kept(KEPT)
    name, elsewhere = socket.gethostname(), any(getattr(cfg, name) for name, _ in ELSEWHERE)
    refused = (
        (not (ENV / "made-from").exists(), "its tree has no environment yet: install first"),
        (was["VERSIONS"] != versions(), "its databases have the tables of other versions than are installed now"),
        (was["HOSTNAME"] != name, f"its instances are those of {was['HOSTNAME']}, and this machine is called {name} now"),
        (was["FOLDER"] != str(cfg.DIR) and elsewhere, f"its disks are elsewhere, by the name of {was['FOLDER']}: move it back"),
    )
    for wrong, why in refused:
        if wrong:
            raise Failure(f"Refusing to start the cloud in {cfg.DIR} ({why})")
    return replace(checked(replace(cfg, IMAGE="")), IMAGE=cfg.IMAGE)  # the image is in the cloud already


def is_kept() -> bool:
    """Is there a whole cloud, up or not?"""
    return KEPT.exists() and KEPT not in GONE


def tell_what_goes(cfg: Settings, yes: str) -> None:
    """Say what is lost with the cloud that DIR has; where instances are, ask the person at the terminal, if there is one."""
    if not is_kept():
        return
    found = what_it_has(settings_of_run(str(cfg.DIR)))
    told = [f"{len(names)} {what} ({', '.join(names[:9])})" for what, names in found.items() if names]
    say(f"This deletes the cloud in {cfg.DIR} with its users, images and networks{': ' * bool(told)}{' and '.join(told)}.")
    if found.get("instances") and not (yes or DRY_RUN) and sys.stdin.isatty():
        say("Type yes to go on:")
        if sys.stdin.readline().strip() != "yes":
            raise Failure("nothing was changed", "to bring that cloud back: sudo python3 nova.py start")


def what_it_has(cfg: Settings) -> dict[str, list[str]]:
    """The names of the cloud's instances and volumes, as its databases have them, be it up or not."""
    domains = [path.stem for path in DOMAINS.glob("*/instance-*.xml")]
    if not domains and not asked_for(cfg, "VOLUMES_SIZE"):
        return {}  # the usual case, and a server's start is not worth it
    there = not cfg.USE_MYSQL or answers(f"{STATE}/mysql/sock")
    if DRY_RUN and not there:
        return {"instances": domains}
    try:
        with contextlib.nullcontext() if there else started(cfg, WINDOWS["mysql"]):
            return {what: names_in(cfg, row["table"], row["there"]) for what, row in contents(cfg).items()}
    except (Failure, OSError, sqlite3.Error) as failure:
        log.info("the databases do not tell: %s", failure)
        return {"instances": domains}


def contents(cfg: Settings) -> dict[str, dict[str, str]]:
    """What a cloud has that is its user's, and where its databases tell of it."""
    return {what: row for service in services(cfg).values() for what, row in service.contents.items()}


def names_in(cfg: Settings, place: str, which: str) -> list[str]:
    """The names of what is in a table, DATABASE.TABLE, as far as `which` (SQL) is true of it."""
    database, _, table = place.partition(".")
    query = f"SELECT display_name FROM {table} WHERE {which}"  # noqa: S608 (of conf/services.toml)
    if not cfg.USE_MYSQL:
        place = f"file:{STATE}/databases/sqlite/{database}?mode=ro"
        with contextlib.closing(sqlite3.connect(place, uri=True, timeout=10)) as file:
            return [str(row[0]) for row in file.execute(query)]
    client = ("mariadb", "--no-defaults", f"--socket={STATE}/mysql/sock", "--batch", "--skip-column-names")
    return ask(*client, database, "--execute", query).splitlines()


def empty(names: Sequence[str]) -> None:
    """Delete what is in folders of HOME, and files."""
    remove(*(path for name in names for path in ((HOME / name).glob("*") if (HOME / name).is_dir() else [HOME / name])))


def create_switch(schema: str = "openvswitch/vswitch", name: str = "conf") -> None:
    """An empty database of Open vSwitch, or of OVN."""
    do("ovsdb-tool", "create", STATE / f"ovs/{name}.db", f"/usr/share/{schema}.ovsschema", user=USER)


def empty_databases(cfg: Settings, copied: bool = False) -> None:
    """Every run is a fresh cloud: databases as install made them, or as the first such run did; no instances, no messages."""
    with step("Empty the databases"):
        empty([name for service in SERVICES.values() for name in (*service.emptied, *service.ended)])
        create_switch()
        create_switch("ovn/ovn-sb", "ovnsb")
        if copied:
            copy_new(KEPT_NEW, STATE)
        else:
            do(*COPY, kept_databases(cfg), STATE / "databases")
            create_switch("ovn/ovn-nb", "ovnnb")


COPY = ("cp", "--archive", "--reflink=auto", "--sparse=always", "--no-target-directory")
LINK = ("cp", "--archive", "--link", "--no-target-directory")  # for images: what is in one never changes
KEPT_NEW, MADE_NEW = STATE / "cache/new", STATE / "cache/new.made-from"


def key_of_new(cfg: Settings) -> str:
    """What a new cloud depends on; "" where it is not kept: SQLite's writers cannot be held, a directory may change."""
    if not cfg.USE_MYSQL or cfg.DIRECTORY:
        return ""
    image = (seen.st_size, seen.st_mtime_ns) if cfg.IMAGE and (seen := stat_of(image_file(cfg))) else ()
    made_from = (kept_databases(cfg).with_suffix(".made-from"), HOME / "images/made-from")
    ours = [HERE / name for service in services(cfg).values() for name in ("nova.py", "conf/cloud.toml", *service.files)]
    theirs = (ROOTFS / "etc/resolv.conf", ROOTFS / "usr/share/ovn/ovn-nb.ovsschema")  # the first is the instances' as well
    parts = (asdict(cfg), image, socket.gethostname(), pool_range(cfg), [text_of(path) for path in (*made_from, *ours, *theirs)])
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def is_new_kept(cfg: Settings) -> bool:
    """Did an earlier run make the same cloud?"""
    return text_of(MADE_NEW) == (key_of_new(cfg) or None)


def make_new(cfg: Settings) -> None:
    """What a new cloud has, by the APIs; later runs have it from its copy."""
    in_parallel(lambda: create_flavors(cfg), lambda: create_networks(cfg), lambda: upload_image(cfg))
    create_projects(cfg)
    if key_of_new(cfg):
        forgiven(keep_new)


def keep_new() -> None:
    """Copy it while its servers are held: the same files that they find after a crash, which they are made for."""
    with step("Keep a copy of it"):
        remove(MADE_NEW, KEPT_NEW, part := KEPT_NEW.with_suffix(".part"))
        held = [found for window in ("mysql", "ovsdb") if (found := service_of(window))]
        change("# hold mariadbd and ovsdb-server (kill -STOP)", lambda: send(signal.SIGSTOP, held))
        try:
            copy_new(STATE, part)
        finally:
            change("# and let them go on (kill -CONT)", lambda: send(signal.SIGCONT, held))
        do("sync", "--file-system", part)
        move(part, KEPT_NEW)


def note_new(cfg: Settings) -> None:
    """The copy is whole, and an instance was reached in what it was made of: from now on it counts."""
    if (key := key_of_new(cfg)) and (KEPT_NEW.exists() or DRY_RUN) and not is_new_kept(cfg):
        write_file(MADE_NEW, key, 0o600)


def copy_new(old: Path, new: Path) -> None:
    """All of NEW from one folder into another."""
    for name in NEW:
        make_folder((new / name).parent)
        do(*(LINK if name == "glance/images" else COPY), old / name, new / name)


def use_volumes(cfg: Settings) -> None:
    """A disk of VOLUMES_SIZE GiB for cinder, which bounds them: a file, and on it a volume group or a file system.

    A kept cloud has its own. Such a mount, as every other of ours, ends with the cloud's last process, and its loop device too.
    """
    if not asked_for(cfg, "VOLUMES_SIZE"):
        return
    disk, share = STATE / "volumes/disk", STATE / "volumes/local:/share"
    if not is_kept():
        with step("Make room for volumes"):
            make_folder(share)
            write_file(disk, "", 0o600)
            do("truncate", f"--size={int(cfg.VOLUMES_SIZE) * 1025 + 64}M", disk)  # and what a file system needs for itself
            if not cfg.VOLUMES_LVM:
                do("mkfs.ext4", "-q", "-m", 0, "-O", "^has_journal,^resize_inode", "-T", "largefile4", disk)
    if cfg.VOLUMES_LVM:
        if not is_kept() and ask("vgs", "nova-volumes", default=""):
            raise Failure("this machine has a volume group nova-volumes", "give that one another name (vgrename)")
        device = ask("losetup", "--find")
        record("losetup", "--detach", device)
        do("losetup", device, disk)
        record("vgremove", "--force", "nova-volumes")
        record("vgchange", "--activate", "n", "nova-volumes")
        do(*(("vgchange", "--activate", "y", "nova-volumes") if is_kept() else ("vgcreate", "nova-volumes", device)))
    else:
        if is_kept():  # it has no journal; what the first look mends (exit code 1), the second finds well
            wait_for("the disk for volumes", lambda: not ask("losetup", "--associated", disk), 30)  # those before let go of it
            forgiven(do, "e2fsck", "-p", disk)
            do("e2fsck", "-p", disk)
        do_outside("mount", "-o", "loop,discard,nosuid,nodev", disk, share)
        # What cinder makes there as root it reads and writes by its group; QEMU comes through.
        do("install", "--directory", "--mode=2771", f"--group={PRIVSEP.partition(':')[2]}", share)


def has_iscsi() -> bool:
    """Has this kernel device-mapper and an iSCSI initiator? Containers' and micro-VMs' have not, as a rule."""
    if not Path("/dev/mapper/control").exists():
        return False
    return Path("/sys/module/iscsi_tcp").exists() or bool(ask("modprobe", "--show-depends", "iscsi_tcp", default=""))


def start_session(cfg: Settings) -> None:
    """The screen session, and in it what takes longest. A new cloud's windows have no logs yet."""
    with step("Open the session"):
        if not is_kept():
            remove(*(path for path in (STATE / "log").glob("*.log") if path.name != "nova.log"))
        if cfg.KSM and not DRY_RUN:
            ctypes.CDLL(None).prctl(67, 1, 0, 0, 0)  # PR_SET_MEMORY_MERGE: all that the session will start has it from us
        shell = ("bash", "--rcfile", CONF / "test", "-i")
        screen = ("screen", "-c", CONF / "screenrc", "-d", "-m", "-S", cfg.SCREEN_NAME, "-t", "test", *shell)
        do_outside("unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", PIVOT, "sh", *screen)
        wait_for("screen", lambda: session(cfg), 10)
        if cfg.SCREEN_STATUS:
            to_screen(cfg, "hardstatus", "alwayslastline", "%-w%{= BW}%50>%n* %t%{-}%+w%< %= %H")
        open_windows(cfg, windows(cfg, "preload"))


# How the session enters ROOTFS, which becomes the root of its mounts: nothing of the machine's is mounted there any more. In one
# that chroot entered, a container could go back to the machine's root, and libvirt would look for the container's files there.
PIVOT = f'cd {ROOTFS}; pivot_root . mnt; mount --make-rprivate /mnt; umount --lazy /mnt; exec "$@"'


def start_servers(cfg: Settings) -> None:
    """What OpenStack stands on."""
    if not DRY_RUN:  # the APIs' client takes a second to import: beside what is waited for
        threading.Thread(target=importlib.import_module, args=("openstack.connection",), daemon=True).start()
    with step("Start MariaDB, RabbitMQ, Open vSwitch, OVN and libvirt"):
        if cfg.LIBVIRT_TYPE == "lxc":
            record_groups()
        start_wave(cfg, "infrastructure")


def start_wave(cfg: Settings, wave: str, *before: Window) -> None:
    """All at once, until those `before` and they answer; but for rabbit and the conductor: whoever needs these two waits."""
    asked = windows(cfg, wave)
    open_windows(cfg, asked)
    wait_for_windows(cfg, [*before, *(window for window in asked if window.name not in ("rabbit", "conductor"))])


def record_groups() -> None:
    """libvirt makes control groups for containers and leaves the uppermost behind; all of them, where it was killed."""
    trees = [CGROUPS] if has_cgroup2() else [CGROUPS / name for name in CONTROLLERS]
    if new := [path for path in (tree / "machine" for tree in trees) if not path.exists()]:
        record("find", *new, "-depth", "-type", "d", "-delete")


def use_directory(cfg: Settings) -> None:
    """Ours has conf/tree.ldif.tmpl in it, or still has; the user's is asked for what keystone will ask it for."""
    if not cfg.DIRECTORY:
        return
    known, wrong = values(cfg), "compare LDAP_URL, LDAP_TREE and LDAP_PASSWORD with what that directory has: README.md"
    login = ("-x", "-H", known["LDAP_SERVER"], "-o", "nettimeout=10", "-D", f"cn=admin,{cfg.LDAP_TREE}", "-y", "/dev/stdin")
    fill, look = ("ldapadd", "-f", CONF / "tree.ldif"), ("ldapsearch", "-LLL", "-b", f"ou=groups,{cfg.LDAP_TREE}", "cn=*", "dn")
    program, *words = look if cfg.DIRECTORY == "yours" or is_kept() else fill
    with step("Use the directory"):
        do(program, *login, *words, text=known["LDAP_PASSWORD"], hint=wrong)


def create_bridges(cfg: Settings) -> None:
    """OVN's integration bridge; br-ex, where this machine is the gateway of the floating addresses; br100 of `private`."""
    with step("Create the bridges"):
        if not has_kernel_datapath():
            record("modprobe", "--remove", "openvswitch")
            forgiven(do, "modprobe", "openvswitch")
        record("ip", "link", "delete", "group", GROUP)
        if has_kernel_datapath():
            record("ovs-dpctl", "del-dp", "system@ovs-system")
        bridges = shlex.split(render((HERE / "conf/bridges.tmpl").read_text(), cfg), comments=True)
        do("ovs-vsctl", f"--db={PATHS['OVSDB']}", *bridges)
        mark_bridges()
        floating, fixed = ipaddress.IPv4Network(cfg.FLOATING_RANGE), ipaddress.IPv4Network(cfg.FIXED_RANGE)
        use_bridge("br-ex", f"{floating[1]}/{floating.prefixlen}")
        if MANAGERS[cfg.NET_MAN].host:
            use_bridge("br100", f"{fixed[-2]}/{fixed.prefixlen}")
        if cfg.FLAT_INTERFACE:
            join_interface(cfg.FLAT_INTERFACE)
        record("nft", "delete", "table", "ip", "nova_py")
        do("nft", "-f", CONF / "nat.nft")
        if switch("net.ipv4.ip_forward", "1"):
            do("nft", "-f", CONF / "forward.nft")
        if cfg.CONSOLES:
            do("nft", "-f", CONF / "consoles.nft")
        if cfg.USE_SWIFT:
            do("nft", "-f", CONF / "swift.nft")
        if cfg.USE_IPV6:
            route_ipv6(cfg)


def mark_bridges() -> None:
    """Ours are in a group of links, by which they are taken back: by then one of that name may be somebody else's."""
    for device in BRIDGES:
        if Path(f"/sys/class/net/{device}").exists() or DRY_RUN:
            forgiven(do, "ip", "link", "set", device, "group", GROUP)


def use_bridge(name: str, address: str) -> None:
    """This machine has an address on a bridge, where it listens to no router."""
    do_again("sysctl", "-eqw", f"net/ipv6/conf/{name}/accept_ra=0")
    do_again("ip", "address", "replace", address, "dev", name)
    do_again("ip", "link", "set", name, "up")


def do_again(*command: object) -> None:
    """Do it, now and whenever ovs-vswitchd was started again: conf/again.tmpl."""
    append(STATE / "run/addresses", f"{shlex.join(map(str, command))}\n")
    do(*command)


def switch(key: str, value: str) -> bool:
    """Set a kernel parameter, where the kernel has it; scrub puts it back. Was it another?"""
    if (was := ask("sysctl", "-n", key, default=value)) != value:
        record("sysctl", "-qw", f"{key}={was}")
        do("sysctl", "-qw", f"{key}={value}")
    return was != value


def join_interface(name: str) -> None:
    """FLAT_INTERFACE is a port of br100, and nothing else: this machine's own IPv6 does not hear what comes in there."""
    flags = int(Path(f"/sys/class/net/{name}/flags").read_text(), 16)
    record("ip", "link", "set", name, "up" if flags & 1 else "down", "promisc", "on" if flags & 0x100 else "off")
    switch(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    do("ip", "link", "set", name, "up")
    do("ovs-vsctl", f"--db={PATHS['OVSDB']}", "add-port", "br100", name)


def route_ipv6(cfg: Settings) -> None:
    """This machine routes between the instances and the outside, and still hears the routers that it heard before.

    Linux with forwarding hears them only where accept_ra is 2, and forgets at once the routes that it had from others.
    """
    for name in sorted({interface for route, interface in routes6() if not route.prefixlen}):
        if ask("sysctl", "-n", key := f"net/ipv6/conf/{name}/accept_ra") == "1":
            switch(key, "2")
    for path in Path("/proc/sys/net/ipv6/conf").glob("*/forwarding"):  # the switch for all is one for each
        if path.parent.name != "all" and path.read_text().strip() == "1":
            record("sysctl", "-qw", f"net/ipv6/conf/{path.parent.name}/forwarding=1")
    record("nft", "delete", "table", "ip6", "nova_py")
    do("nft", "-f", CONF / "nat6.nft")
    if switch("net.ipv6.conf.all.forwarding", "1"):
        do("nft", "-f", CONF / "forward6.nft")
    public = ranges_v6(cfg)[1]
    do_again("ip", "address", "replace", f"{public[1]}/64", "dev", "br-ex", "nodad")


def has_kernel_datapath() -> bool:
    """Does this kernel have Open vSwitch? Many containers' and micro-VMs' kernels do not; then it runs in userspace."""
    return Path("/sys/module/openvswitch").exists()


def start_control(cfg: Settings) -> None:
    """The APIs and what works for them."""
    with step("Start the APIs"):
        start_wave(cfg, "control", WINDOWS["preload"])
        # keystone reads its rules when they are first needed; where two ask at once, it refuses one (seen with 30.0.0).
        ask_keystone(cfg)


@by_api
def ask_keystone(cfg: Settings) -> None:
    """Ask keystone once, for all."""
    list(cloud(cfg).identity.services())


def start_workers(cfg: Settings) -> None:
    """What asks the others when it starts."""
    with step("Start scheduler, compute and network agents"):
        open_windows(cfg, windows(cfg, "workers"))
        wait_for_windows(cfg, [WINDOWS["conductor"]])
        open_windows(cfg, windows(cfg, "compute"))
        wait_for_windows(cfg, windows(cfg, "workers"))


@by_api
def create_flavors(cfg: Settings) -> None:
    """Create nova.sh's sizes, and those that clients' jobs expect: FLAVORS."""
    with step("Create flavors"):
        for name, number, ram, disk, cpus in FLAVORS:
            cloud(cfg).compute.create_flavor(name=name, id=number, ram=ram, disk=disk, vcpus=cpus)


@by_api
def create_networks(cfg: Settings) -> None:
    """Create private, public and the router between them; let ping and ssh come in."""
    with step("Create networks"):
        network, manager = cloud(cfg).network, MANAGERS[cfg.NET_MAN]
        outside = dict(provider_network_type="flat", provider_physical_network="public", is_router_external=True)
        # is_default: where the routers of projects lead that have their network by itself
        public = network.create_network(name="public", is_default=True, **outside)
        private = network.create_network(name="private", provider_physical_network="fixed", **manager.private)
        create_subnet(cfg, public, cfg.FLOATING_RANGE, -2, is_dhcp_enabled=False)
        inside = [create_subnet(cfg, private, cfg.FIXED_RANGE, -3, is_dhcp_enabled=manager.dhcp)]
        if cfg.USE_IPV6:
            create_subnet(cfg, public, str(ranges_v6(cfg)[1]), -2, is_dhcp_enabled=False)
            by_router = dict(ipv6_ra_mode="slaac", ipv6_address_mode="slaac", is_dhcp_enabled=True)
            inside.append(create_subnet(cfg, private, str(ranges_v6(cfg)[0]), -2, **by_router))
        router = network.create_router(name="router", external_gateway_info={"network_id": public.id})
        for subnet in inside:
            network.add_interface_to_router(router, subnet_id=subnet.id)
        part = dict(prefixes=[pool_range(cfg)], default_prefix_length=26, is_shared=True, is_default=True)
        network.create_subnet_pool(name="shared-default-subnetpool-v4", **part)
        share_private(cfg, private)
        route_private(cfg)
        allow_ping_and_ssh(cfg)


def share_private(cfg: Settings, private: Any) -> None:
    """Let the project demo use `private`, which is the admin's, as DevStack's demo uses its own."""
    if not MANAGERS[cfg.NET_MAN].private.get("is_shared"):
        demo = cloud(cfg).identity.find_project("demo")
        whose = dict(object_type="network", object_id=private.id, action="access_as_shared", target_project_id=demo.id)
        cloud(cfg).network.create_rbac_policy(**whose)


def pool_range(cfg: Settings) -> str:
    """One of POOLS that overlaps neither the cloud's ranges nor a route of this machine; the last one if all of them do.

    IPv4 alone: neutron gives such a network's IPv6 subnet no router advertisements, so no instance would get its address.
    """
    in_use = [ipaddress.IPv4Network(cfg.FLOATING_RANGE), ipaddress.IPv4Network(cfg.FIXED_RANGE)]
    in_use += [route for route, interface in routes() if route.prefixlen and interface not in BRIDGES]
    is_free = lambda pool: not any(ipaddress.IPv4Network(pool).overlaps(network) for network in in_use)
    return next(filter(is_free, POOLS), POOLS[-1])


@by_api
def route_private(cfg: Settings) -> None:
    """Route the instances' IPv6 addresses, which have no translation, through br-ex, where USE_IPV6 asks for them."""
    if not cfg.USE_IPV6:
        return
    gateways = [each.external_gateway_info or {} for each in list(cloud(cfg).network.routers(name="router"))[:1]]
    places = [each["ip_address"] for gateway in gateways for each in gateway.get("external_fixed_ips", ())]
    for address in (place for place in places if ":" in place):  # none where a user deleted the router, or its way out
        do_again("ip", "-6", "route", "replace", ranges_v6(cfg)[0], "via", address, "dev", "br-ex")


def create_subnet(cfg: Settings, network: Any, cidr: str, last: int, **more: object) -> Any:
    """A network's subnet: its first address is the gateway's, instances have the second to the `last`."""
    room = ipaddress.ip_network(cidr)
    pool = dict(start=str(room[2]), end=str(room[last]))
    where = dict(network_id=network.id, ip_version=room.version, cidr=cidr, gateway_ip=str(room[1]))
    name = f"{'ipv6-' * (room.version == 6)}{network.name}-subnet"
    return cloud(cfg).network.create_subnet(name=name, allocation_pools=[pool], **where, **more)


def allow_ping_and_ssh(cfg: Settings) -> None:
    """Into every instance whose security group is the project's default one."""
    every, ssh = dict[str, int](), {"port_range_min": 22, "port_range_max": 22}
    allowed = (("IPv4", "icmp", every), ("IPv6", "ipv6-icmp", every), ("IPv4", "tcp", ssh), ("IPv6", "tcp", ssh))
    network, project = cloud(cfg).network, cloud(cfg).current_project_id
    own = dict(security_group_id=next(network.security_groups(name="default", project_id=project)).id, direction="ingress")
    network.create_security_group_rules([{**own, "ether_type": f, "protocol": p, **ports} for f, p, ports in allowed])


@by_api
def create_projects(cfg: Settings) -> None:
    """Make each group of the directory, if there is one, a project of the domain ldap, whose members are the group's."""
    if cfg.DIRECTORY:
        with step("Create the projects of the directory's groups"):
            identity = cloud(cfg).identity
            domain, member = identity.find_domain("ldap"), identity.find_role("member")
            for group in identity.groups(domain_id=domain.id):
                project = identity.create_project(name=group.name, domain_id=domain.id)
                identity.assign_project_role_to_group(project, group, member)


@by_api
def upload_image(cfg: Settings) -> None:
    """Register ami-tty and debian: kernel, ramdisk, root disk; and IMAGE under its file's name."""
    image = cloud(cfg).image
    with step("Upload the image"):
        ids = dict[str, str]()
        for folder, part in [(built["folder"], part) for built in images(cfg).values() for part in built["part"]]:
            form, name = part["format"], part["name"]
            around = form if form.startswith("a") else "bare"  # Amazon's three formats are containers as well
            known = {key: ids.get(value, value) for key, value in properties(cfg, part).items()}
            with open(HOME / folder / part["file"], "rb") as data:
                options = dict(disk_format=form, container_format=around, visibility="public", **known)
                ids[name] = image.create_image(name=name, data=data, **options).id
    if cfg.IMAGE and not asked_for(cfg, "IMAGE=debian"):
        path, called = image_file(cfg), Path(urllib.parse.urlsplit(cfg.IMAGE).path).stem
        kind, size = image_format(path)
        with step(f"Upload the image {called} ({kind}, a disk of {size / 2**30:.1f} GiB)"), open(path, "rb") as data:
            own = dict(disk_format=kind, container_format="bare", visibility="public", min_disk=-(-size // 2**30))
            shown = BARS.wrap_file(data, path.stat().st_size, task_id=AT_WORK.bar)
            image.create_image(name=called, data=shown, **own)


def properties(cfg: Settings, part: dict[str, Any]) -> dict[str, Any]:
    """What glance is told of a part of an image; of what boots, what it is to run on, which a container cannot be asked."""
    if not (own := part.get("properties", {})):
        return {}
    line = f"{own['os_command_line']} {CLOUD['bootable']['os_command_line']}"
    both = {**CLOUD["bootable"], **own, "os_command_line": line}
    return {key: value for key, value in both.items() if cfg.LIBVIRT_TYPE != "lxc" or not key.startswith("hw_")}


def wait_for_hosts(cfg: Settings) -> None:
    """Until an instance could be placed and wired."""
    room = "/resource_providers?resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"
    placed = lambda: cloud(cfg).placement.get(room, microversion="1.17").json()["resource_providers"]
    with step("Wait for the compute host"):
        wait_for_windows(cfg, windows(cfg, "compute"))
        wait_for("the compute host's report", lambda: is_compute_up(cfg), 60)
        wait_for("the compute host in placement", placed, 60)
        # Until it has registered, it may take away the namespace of an instance that is quicker (29.0.0, by its code).
        agents = ("ovsdb-client", "dump", PATHS["OVSDB"], "OVN_Southbound", "Chassis_Private", "external_ids")
        wait_for("the metadata agent", lambda: "neutron:ovn-metadata-id" in ask(*agents), 60, WINDOWS["network-meta"])
    if asked_for(cfg, "VOLUMES_SIZE"):
        with step("Wait for the volume host"):
            pools = lambda: list(cloud(cfg).block_storage.backend_pools())
            wait_for("the volume host in the scheduler", pools, 90, WINDOWS["volume"])


def merge_memory(cfg: Settings) -> None:
    """Have this kernel keep once what is the same in several processes, unless its owner does that anyway: conf/ksm."""
    if cfg.KSM:
        with step("Have equal memory kept once"):
            if text_of(KSM / "run").strip() == "0":
                back = f"echo 2 >run; echo {text_of(KSM / 'pages_to_scan').strip()} >pages_to_scan; echo 0 >run"  # 2: forget
                record("sh", "-c", f"cd {KSM} && grep -qx -e 0 -e 500 run pages_to_scan && {{ {back}; }}")  # or owner's
            open_windows(cfg, windows(cfg, "last"))


@by_api
def servers_that_ran(cfg: Settings) -> list[Any]:
    """The instances that have to run: those that nova believes do, but for one that is being deleted."""
    servers = cloud(cfg).compute.servers(all_projects=True)
    return [each for each in servers if each.status == "ACTIVE" and not each.task_state]


def is_compute_up(cfg: Settings) -> bool:
    """Does nova take its compute host for alive? After a long stop not before its next report."""
    (host,) = cloud(cfg).compute.services(binary="nova-compute", host=socket.gethostname())
    return host.state == "up" or bool(host.is_forced_down)


def running_guests(cfg: Settings) -> set[str]:
    """The ids of the instances that libvirt runs."""
    place = "lxc:///" if cfg.LIBVIRT_TYPE == "lxc" else "qemu:///system"
    return set(ask("virsh", "--connect", place, "list", "--uuid", "--state-running", default="").split())


def wait_for_instances(cfg: Settings, ran: list[Any]) -> None:
    """Until every instance that ran is ACTIVE and runs. nova-compute sees to it (nova.conf: resume_guests_state_on_host_boot).

    It listens once it has gone through them. But not for one that was paused by a full disk: it is asked to reboot that one.
    """
    with step(f"Wait for nova-compute, and for {len(ran)} instances to run again"):
        limit = 90 + 30 * len(ran)
        wait_for_windows(cfg, windows(cfg, "compute"), limit)
        for server in ran:
            if is_active(cfg, server) and server.id not in running_guests(cfg):
                cloud(cfg).compute.reboot_server(server, "HARD")
        for server in ran:
            again = lambda server=server: is_active(cfg, server) and server.id in running_guests(cfg)
            wait_for(f"the instance {server.name}", again, limit)


@by_api
def smoke_test(cfg: Settings) -> None:
    """Boot an instance, reach it by ping and by ssh through a floating address, delete it."""
    compute, network, key = cloud(cfg).compute, cloud(cfg).network, STATE / "run/smoke"
    with step("Boot an instance and reach it by ssh"):
        do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "smoke", "-f", key)
        _, port, image = in_parallel(
            lambda: compute.create_keypair(name="smoke", public_key=key.with_suffix(".pub").read_text()),
            lambda: network.create_port(name="smoke", network_id=network.find_network("private").id),
            lambda: cloud(cfg).image.find_image("ami-tty"),
        )
        which = dict(flavor_id=FLAVORS[0][1], image_id=image.id, key_name="smoke", networks=[{"port": port.id}])
        server = compute.create_server(name="smoke", **which)
        address = network.create_ip(floating_network_id=network.find_network("public").id, port_id=port.id)
        wait_for("the instance", lambda: is_active(cfg, server), 120)
        place = address.floating_ip_address
        login = ("timeout", 15, "ssh", "-i", key, *shlex.split("-oBatchMode=yes -oConnectTimeout=3 -oLogLevel=ERROR"))
        login += ("-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null")  # the next one at this address is another
        pinged = lambda: " 0% packet loss" in ask("ping", "-c1", "-W0.3", place, ok=(0, 1))
        with telling_console(cfg, server):
            wait_for(f"ping of {place}", pinged, 60)
            wait_for(f"ssh to {place}", lambda: ask(*login, f"root@{place}", "hostname", default="") == "smoke", 90)
    with step("Delete it again"):
        compute.delete_server(server)
        wait_for("the instance's end", lambda: not compute.find_server(server.id), 60)
        network.delete_ip(address)
        network.delete_port(port)
        compute.delete_keypair("smoke")


@contextlib.contextmanager
def telling_console(cfg: Settings, server: Any) -> Iterator[None]:
    """A Failure is told with the last lines of the instance's console, how its interface is, and what gave it no metadata."""
    try:
        yield
    except Failure as failure:
        with contextlib.suppress(Exception):  # what came first counts
            console = cloud(cfg).compute.get_server_console_output(server, length=15)["output"]
            failure.tail = (*console.splitlines(), *ask("ip", "-brief", "link").splitlines(), *last_lines("network-meta"))
        raise


def is_active(cfg: Settings, server: Any) -> bool:
    """Is the instance running? One that went wrong will not, and says why."""
    now = cloud(cfg).compute.get_server(server.id)
    if now.status == "ERROR":
        raise Failure(f"instance {now.name}: {(now.fault or {}).get('message')}", "look into the windows compute and scheduler")
    return bool(now.status == "ACTIVE")


def say_how_to_use(cfg: Settings) -> None:
    """What the user wants to know now: what took how long, where everything is, and three lines to try."""
    if DRY_RUN:
        return
    say("\nSeconds each step took (some went on side by side):")
    for what, seconds in STEPS:
        say(f"  {seconds:6.1f}  {what}")
    say(f"\nThe cloud is up, {time.monotonic() - BEGAN:.0f} s after it was asked for.")
    say(render((HERE / "conf/how-to-use.tmpl").read_text().rstrip(), cfg))


# ---- status ----


def status(cfg: Settings, form: str = "") -> None:
    """Tell how the cloud is; a Failure names what is not well. It only looks."""
    found = look(cfg)
    if form == "--json":
        print(json.dumps(found, indent=1))
    else:
        print("\n\n".join(table(part) for what, part in found.items() if isinstance(part, list) and part and what != "problems"))
    if found["problems"]:
        raise Failure(f"the cloud in {cfg.DIR} is not well", tail=tuple(found["problems"]))
    if not form:
        print(f"\nAll is well: the cloud in {cfg.DIR}, session {cfg.SCREEN_NAME}, up since {found['up_since']}")


def look(cfg: Settings) -> dict[str, Any]:
    """Everything that status tells: lists of rows that are alike, and what is wrong with them."""
    ours, up = {process.pid for process in processes()}, STATE / "run/up"
    shown = windows(cfg) if ours else []
    found: dict[str, Any] = {"folder": str(cfg.DIR), "session": cfg.SCREEN_NAME}
    found["up_since"] = iso(up.stat().st_mtime) if ours and up.exists() else None
    found["stopped"] = not ours and (cfg.DIR / "state" / KEPT.name).exists()
    found["windows"] = [window_state(window, ours) for window in shown]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found["apis"] = list(pool.map(lambda window: api_state(cfg, window), (each for each in shown if "http" in each.ready)))
        who_asks = any(api["api"] == "keystone" and api["answers_in_ms"] is not None for api in found["apis"])
        asked = [row for row in LISTED if who_asks and row[1] in {service.endpoint[0] for service in services(cfg).values()}]
        found |= zip([row[0] for row in asked], pool.map(lambda row: listed(cfg, *row[2:]), asked), strict=True)
    return {**found, "problems": list(problems(found))}


def iso(seconds: float) -> str:
    """A time as programs and people read it."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def window_state(window: Window, ours: set[int]) -> dict[str, Any]:
    """Since when the service of a window runs, how often it was started again, and the memory (PSS) of its processes."""
    deaths = lines_of(STATE / f"run/{window.name}.died")
    state: dict[str, Any] = {"window": window.name, "running_since": None, "restarts": len(deaths), "memory": 0}
    with contextlib.suppress(psutil.Error):
        if (it := service_of(window.name)) and it.pid in ours:
            own = it.children(recursive=True)
            if window.name == "preload":  # below which most others are
                own = [each for each in own if each.name().startswith("preload")]
            state["memory"] = sum(each.memory_full_info().pss for each in (it, *own))
            state["running_since"] = iso(it.create_time())
    return state


def api_state(cfg: Settings, window: Window) -> dict[str, Any]:
    """How long an API takes to answer; None where it does not."""
    place, began = render(window.ready, cfg), time.monotonic()
    answered = answers(place)
    return {"api": window.name, "url": place, "answers_in_ms": round((time.monotonic() - began) * 1000) if answered else None}


def listed(cfg: Settings, call: str, options: dict[str, Any], columns: dict[str, str]) -> list[dict[str, Any]] | str:
    """What an API lists, with these columns of it; why not, where it does not."""
    try:
        admin = cloud(cfg)
        admin.session.timeout = 10
        return [{name: plain(name, item[key]) for name, key in columns.items()} for item in attrgetter(call)(admin)(**options)]
    except Exception as error:  # of the APIs' client: it is the answer to the user's question
        return f"{type(error).__name__}: {error}"


def plain(name: str, value: Any) -> Any:
    """A value of an API's as status tells it: sizes in bytes, addresses without what else is said of them."""
    if isinstance(value, dict):
        return [port["addr"] for ports in value.values() for port in ports]
    return value << 30 if name == "size" else value


def problems(found: dict[str, Any]) -> Iterator[str]:
    """What is not well, one line each."""
    if found["stopped"]:
        yield "it is stopped, and kept: sudo python3 nova.py start"
    elif not found["up_since"]:
        yield "it is not up, or not yet: sudo python3 nova.py run_detached"
    for row in found["windows"]:
        if not row["running_since"]:
            yield f"the window {row['window']} has no running service; it said last: {' '.join(last_lines(row['window'], 1))}"
    for row in found["apis"]:
        if row["answers_in_ms"] is None:
            yield f"the API of {row['api']} does not answer at {row['url']}"
    for what, part in found.items():
        if isinstance(part, str) and what in [row[0] for row in LISTED]:
            yield f"the APIs did not tell the {what.replace('_', ' ')}: {part}"
        for row in part if isinstance(part, list) else []:
            if str(row.get("state")).lower().startswith(("error", "down")):
                yield f"{' '.join(str(value) for value in list(row.values())[:2])}: {row['state']}"
    if isinstance(reported := found.get("services"), list):
        for name in {"nova-compute", "nova-conductor", "nova-scheduler"} - {row["service"] for row in reported}:
            yield f"{name} has not reported to the API"


def table(part: list[dict[str, Any]]) -> str:
    """Rows below the names of their columns, as wide as they must be."""
    lines = [[name.replace("_", " ") for name in part[0]], *([cell(name, row[name]) for name in row] for row in part)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def cell(name: str, value: Any) -> str:
    """A value as a person reads it."""
    if name in ("memory", "size"):
        return f"{value / 2**20:,.0f} MiB"
    if name == "running_since" and value:
        return str(datetime.fromisoformat(value).replace(tzinfo=None))
    return ", ".join(value) if isinstance(value, list) else "-" if value is None else str(value)


# ---- attach, shell ----


def attach(cfg: Settings) -> None:
    """Show the session until it ends or is left."""
    if not (found := session(cfg)):
        raise Failure(f"the cloud in {cfg.DIR} is not up", "start it: sudo python3 nova.py start, or run")
    kind = os.environ.get("TERM", "dumb")
    known = kind if any(ROOTFS.glob(f"usr/*/terminfo/?/{kind}")) else "xterm-256color"  # a terminal's own may not be here
    words = entered(["env", f"TERM={known}", "screen", "-S", f"{found}.{cfg.SCREEN_NAME}", "-p", "test", "-x"])
    with contextlib.suppress(sh.ErrorReturnCode):
        sh.Command(words[0])(*words[1:], _fg=True, _env=surroundings())


def shell(cfg: Settings, *words: str) -> None:
    """A shell where the cloud's programs are, with novarc sourced; or a command, whose exit code is nova.py's."""
    if not ROOT_MADE.exists():
        raise Failure(f"nothing is installed in {cfg.DIR} yet", "sudo python3 nova.py install")
    line = f'. {CONF}/test; exec "$@"' if words else f"exec bash --rcfile {CONF}/test -i"
    found = session(cfg)  # whose mounts show its volumes and network namespaces as well
    entry = ("nsenter", f"--target={found}", "--mount", "--root") if found else ("chroot", str(ROOTFS))
    os.execvpe(entry[0], [*entry, "env", "--chdir=/", "bash", "-c", line, "shell", *words], surroundings())


# ---- stop ----


def stop(cfg: Settings) -> None:
    """End every process and keep the cloud in DIR; the machine has nothing else of it left. start brings it back.

    clean ends it at once, as a crash would, and leaves bridges and rules: start copes with that too. Here each part gets the
    time that it needs. nova-compute ends before the guests do: so nova believes that they run, and start has them run again.
    """
    refuse_beside_another("stop")
    if not is_kept():
        raise Failure(f"no whole cloud in {cfg.DIR} to keep", "make one with run_detached; clean ends what there is")
    do("rm", "--force", STATE / "run/up")
    if processes():
        with step("Wait for what is being done to instances and volumes"):
            forgiven(wait_for, "the end of that", lambda: not in_the_making(cfg), 60)
        with step("End OpenStack's services"):
            end_windows(windows(cfg, *OPENSTACK), 3)
        with step("Shut the instances down"):
            shut_down_guests(cfg)
    with step("End what they stood on, and remove bridges and rules"):
        take_down(cfg, 20)
        remove_traces()
    if not DRY_RUN:
        say(f"The cloud in {cfg.DIR} is stopped, and kept. To bring it back: sudo python3 nova.py start")


def in_the_making(cfg: Settings) -> list[str]:
    """The instances and volumes that something is being done to."""
    found = [(row["table"], f"{row['there']} AND {row['busy']}") for row in contents(cfg).values()]
    return [name for table, which in found for name in names_in(cfg, table, which)]


def shut_down_guests(cfg: Settings) -> None:
    """Each is told to power off, as by its button. Who has not after ten seconds is ended with the rest: see take_down."""
    place = "lxc:///" if cfg.LIBVIRT_TYPE == "lxc" else "qemu:///system"
    for guest in running_guests(cfg):
        forgiven(do, "virsh", "--connect", place, "shutdown", guest)
    forgiven(wait_for, "the guests' end", lambda: not running_guests(cfg), 10)


# ---- terminate ----


def terminate(cfg: Settings) -> None:
    """End every instance and every volume through the API; where that does not answer, the instances through libvirt.

    Volumes are then deleted by the next run, with everything else, objects always: `emptied`.
    """
    if is_kept() and not processes():
        why = f"the cloud in {cfg.DIR} is stopped, and who could end its instances and volumes with it"
        raise Failure(f"Refusing to terminate ({why})", "start it first; or leave them to run or scrub: they end the whole cloud")
    try:
        with step("End the instances"):
            if processes() and answers(f"http://{cfg.HOST_IP}:8774/"):
                delete_everything(cfg)
                if asked_for(cfg, "VOLUMES_SIZE"):
                    delete_volumes(cfg)
                if DRY_RUN:  # then libvirt has nothing more to end
                    return
    except Failure as failure:
        say(f"The APIs did not end them ({failure}); so libvirt does.")
    destroy_domains()


@by_api
def delete_everything(cfg: Settings) -> None:
    """Delete every project's instances, and every floating address."""
    compute, network = cloud(cfg).compute, cloud(cfg).network
    servers = functools.partial(compute.servers, all_projects=True)
    for server in (those := list(servers())):
        compute.delete_server(server, force=True)
    wait_for(f"the end of {len(those)} instances", lambda: not list(servers()), 60)
    for address in network.ips():
        network.delete_ip(address)


@by_api
def delete_volumes(cfg: Settings) -> None:
    """Delete every project's volumes with their snapshots, whatever state they are in."""
    storage = cloud(cfg).block_storage
    volumes = functools.partial(storage.volumes, all_projects=True)
    for each in storage.attachments(all_projects=True):  # of instances that are no more
        storage.delete(f"/attachments/{each.id}", microversion="3.27")
    for each in (those := list(volumes())):
        storage.delete(f"/volumes/{each.id}?cascade=true&force=true", microversion="3.23")
    wait_for(f"the end of {len(those)} volumes", lambda: not list(volumes()), 60)


def destroy_domains() -> None:
    """The domains of this cloud's own libvirt: destroyed and forgotten."""
    if answers(f"{ROOTFS}/run/libvirt/libvirt-sock"):
        for virsh, *options in ((("virsh",), "--nvram", "--managed-save"), (("virsh", "--connect", "lxc:///"),)):
            for name in ask(*virsh, "list", "--all", "--name", default="").split():
                forgiven(do, *virsh, "destroy", name)
                forgiven(do, *virsh, "undefine", *options, name)


# ---- clean ----


def clean(cfg: Settings) -> None:
    """End the session and every process that it started; the machine's own are not touched."""
    with step("End the session and its processes"):
        take_down(cfg)


def end_windows(those: Sequence[Window], seconds: float) -> None:
    """End what runs in these windows."""
    files = [STATE / f"run/{window.name}.pid" for window in those]
    keepers = {int(number) for path in files if (number := text_of(path).strip())}  # none where the disk was full
    remove(*files)  # no keep follows one that is killed: conf/window.tmpl
    end_processes([p for p in processes() if p.pid in keepers], seconds)


def take_down(cfg: Settings, seconds: float = 0.2) -> None:
    """End windows and guests, OpenStack before what it stands on; then whatever of ours is still there.

    `seconds` are for what OpenStack stands on, whose data is kept; clean, as a crash, gives it hardly any.
    """
    if "ovs-vswitchd" in [program_of(process.pid) for process in processes()]:  # a run that was cut off before it marked them
        mark_bridges()
    end_windows([WINDOWS["ksm"]], 3)  # or the kernel goes on
    end_windows([each for each in WINDOWS.values() if each.wave in OPENSTACK], min(seconds, 3))
    end_windows([WINDOWS["rabbit"]], 0)  # its messages do not outlive it, and it takes a second to end
    end_windows([each for each in WINDOWS.values() if each.wave in ("preload", "infrastructure")], seconds)
    if session(cfg) in [p.pid for p in processes()]:
        forgiven(to_screen, cfg, "quit")
    for pid in (pid for pid, lives in sessions(cfg).items() if not lives):
        forgiven(do, "screen", "-wipe", f"{pid}.{cfg.SCREEN_NAME}")
    for _ in range(1 if DRY_RUN else 5):  # again, for what one of them started meanwhile
        end_processes(processes(), min(seconds, 1))
    remove(*(STATE / "run").glob("*"))


# ---- scrub ----


def scrub(cfg: Settings, yes: str = "") -> None:
    """Remove what a cloud leaves on the machine; works with no API, no session, no database, and twice.

    With its domains, and its disks where those are elsewhere, the cloud is gone for good: start does not bring it back.
    """
    refuse_beside_another("scrub")
    tell_what_goes(cfg, yes)
    with step("Remove bridges, rules and domains"):
        take_down(cfg)
        remove(KEPT)
        remove_traces()


def refuse_beside_another(verb: str) -> None:
    """Another cloud's traces look like ours."""
    if other := other_cloud():
        raise Failure(f"Refusing to {verb} ({other} is up, and its bridges have the same names)", "end that one first")


def remove_traces() -> None:
    """Take back what the record names, remove instances' taps, and forget the domains.

    A tap carries our MAC prefix but for its first byte, which libvirt sets to fe where it makes the tap itself.
    """
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):  # where nova did not end a container, its disk is one still
        if file.read_text().strip().removesuffix("/disk")[-36:] in containers():
            forgiven(do, "losetup", "--detach", f"/dev/{file.parents[1].name}")
    undo_recorded()
    for device in sorted(Path("/sys/class/net").glob("tap*")):
        address = (device / "address").read_text() if (device / "tun_flags").exists() else ""
        if address[2:].startswith(str(PATHS["MAC_PREFIX"])[2:]):
            forgiven(do, "ip", "link", "delete", device.name)
    if not is_kept():
        remove(STATE / "record", *DOMAINS.glob("*/*.xml"))


# ---- uninstall ----


def uninstall(cfg: Settings, *options: str) -> None:
    """Delete DIR, with all that was installed for the cloud, and show that the machine is as it was before the first run."""
    keep, yes = ("--keep-cache" in options), ("--yes" if "--yes" in options else "")
    if other := other_cloud():
        raise Failure(f"Refusing to uninstall ({other} is up)", "end that one first")
    if not STATE.exists():
        return
    scrub(cfg, yes)
    lost, tops, around = changes(), tree()["top"], kept(AROUND).get("made", ())
    different = list[str]()

    def is_as_it_was() -> bool:
        different[:] = differences()
        return not different

    forgiven(wait_for, "the machine as it was", is_as_it_was, 5)
    leave_mounts(cfg)
    remove_folder(cfg, [] if lost else tops, keep)
    for folder in around:
        forgiven(do_outside, "rmdir", folder)
    if lost:
        say(f"Your {len(lost)} changes stay in {cfg.DIR}: {', '.join(lost[:5])}")
    forgiven(do_outside, "rmdir", HOME)
    do_outside("rm", "--force", LOCK)
    if not keep:  # last: this program runs from it
        do_outside("rm", "--recursive", "--force", HERE / ".tool.lock", TOOL)
    if different:
        raise Failure("the machine is not as it was before the first run", tail=tuple(different))


def remove_folder(cfg: Settings, tops: list[str], keep: bool) -> None:
    """DIR goes, but for a tree that has changes, and for what keep asks to keep."""
    stays = {"cache", ROOTFS.name, ROOT_MADE.name} if keep else set[str]()
    state = [path for path in (cfg.DIR / "state").glob("*") if path.name not in stays]
    large = [path for path in state if path.name in ("cache", ROOTFS.name)]

    def delete(*places: Path) -> None:
        do_outside("rm", "--recursive", "--force", "--one-file-system", *sorted(places))

    with step(f"Remove {cfg.DIR}"):
        LOG_FILE.clear()
        delete(*(cfg.DIR / name for name in {*OWN, *tops} - {"state"}))  # first: the state knows of them
        in_parallel(*(functools.partial(delete, place) for place in large), lambda: delete(*{*state} - {*large}))
        do_outside("rmdir", "--ignore-fail-on-non-empty", cfg.DIR / "state", cfg.DIR)


# ---- Command line ----


def settings(cfg: Settings) -> None:
    """Print each variable with its value and its meaning; a star where the value was chosen and is not the default."""
    for row in fields(Settings):
        value = int(value) if isinstance(value := getattr(cfg, row.name), bool) else value
        shown = "(set)" if row.name in SECRETS and value else value
        mark = "*" if os.environ.get(row.name) and getattr(cfg, row.name) != row.default else " "
        print(f"{mark} {row.name + '=' + str(shown):34} {row.metadata['meaning']}")


VERBS: dict[str, Callable[..., None]] = {name: globals()[name] for name in VERB_WORDS}
# with the settings that the cloud was made with
OF_A_CLOUD = ("status", "attach", "shell", "stop", "start", "terminate", "clean", "scrub", "uninstall")
OPTIONS = {
    "status": ("--json",), "run": ("--yes",), "run_detached": ("--yes",), "scrub": ("--yes",),
    "uninstall": ("--keep-cache", "--yes"),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Carry out one verb; returns the exit code: 0 done, 1 failed, 2 usage, 130 Ctrl-C."""
    os.umask(0o022)
    signal.signal(signal.SIGINT, interrupt)
    log.setLevel(logging.DEBUG)
    log.addHandler(logging.StreamHandler() if "-v" in ARGUMENTS else logging.NullHandler())
    verb, rest, options = understood(arguments)
    most = {"branch": 2, "settings": 0}.get(verb, 1)
    try:
        strange = len(rest) > most or any(word.startswith("-") or not word for word in rest)
        refuse_if(strange, f"{verb} does not take {' '.join(rest)}; see: python3 nova.py --help")
        folder = rest[most - 1] if len(rest) == most and most else "nova"
        cfg = settings_of_run(folder) if verb in OF_A_CLOUD else settings_from(dict(os.environ), folder)
        cfg = prompted(cfg, verb) if "-p" in arguments and not DRY_RUN else cfg
        if verb == "settings":
            settings(cfg)
            return 0
        for word in rest[: most - 1]:
            source_from(word)  # refused before DIR is made
        os.environ["XDG_CACHE_HOME"] = f"{STATE}/cache"  # not ~/.cache, which is the caller's
        os.environ["no_proxy"] = f"127.0.0.1,{cfg.HOST_IP},{os.environ.get('no_proxy', '')}"
        # run is not at work while its session is shown, and those that only look disturb nobody
        together = verb in ("run", "status", "attach", "shell") or DRY_RUN
        alone = contextlib.nullcontext() if together else only_one(verb)
        with alone, BARS, telling_full_disks(cfg):
            prepare_folder(cfg, verb)
            VERBS[verb](cfg, *rest[: most - 1], *options)
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


def understood(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """The verb, its arguments, and its options; of shell, DIR, if the first word is one that has a cloud, and the command."""
    verb, *rest = [word for word in arguments if word not in FLAGS]
    if verb == "shell":
        behind = arguments[arguments.index("shell") + 1 :]
        folder = 1 if behind and Path(behind[0], "state").is_dir() else 0
        return verb, behind[:folder], behind[folder:]
    options = sorted({word for word in rest if word in OPTIONS.get(verb, ())})
    return verb, [word for word in rest if word not in options], options


def prepare_folder(cfg: Settings, verb: str) -> None:
    """DIR is there, or is made by the verbs that may; its log begins; the private mounts are in place."""
    check_words(Settings(DIR=cfg.DIR))
    if verb == "uninstall" and not (cfg.DIR / "state").exists():
        return  # it came so far before, or DIR was deleted by hand
    marks = ("log/nova.log", "record", "settings.json", TREE.name, KEPT.name)  # others have folders called state as well
    ours = any((cfg.DIR / "state" / name).exists() for name in marks)
    if verb in OF_A_CLOUD and not ours:
        raise Failure(f"no cloud in {legible(cfg.DIR)}", f"go to the folder where it was made, or name it: nova.py {verb} DIR")
    if os.path.lexists(state := cfg.DIR / "state") and (state.is_symlink() or state.stat().st_uid != 0):
        raise Failure(f"Refusing to use {cfg.DIR}/state (it is not root's, so it may hold anything)", "remove it first")
    if verb == "status":
        if HOME.exists():  # where it is not, no cloud is up
            mount("--bind", cfg.DIR.resolve(), HOME)
        return
    if not (cfg.DIR / "state").exists():
        check_machine(cfg)
        if cfg.DIR.is_dir() and (there := sorted(path.name for path in cfg.DIR.iterdir())):
            raise Failure(f"Refusing to use {cfg.DIR} (it holds {', '.join(there[:5])})", "name a new folder: nova.py VERB DIR")
    missing = [each for each in (cfg.DIR, *cfg.DIR.parents) if not each.exists()]
    if DRY_RUN:
        print(f"# All of it in mounts of its own (unshare --mount). enter: chroot {ROOTFS}, the cloud's own Debian")
    try:
        make_folder(cfg.DIR / "state")
        start_log(cfg)
    except OSError as error:
        raise Failure(f"cannot use {cfg.DIR} as the cloud's folder: {error.strerror}", "name another: nova.py VERB DIR") from None
    private_mounts(cfg)
    if missing:
        made = [str(each) for each in missing if each != cfg.DIR]
        write_file(cfg.DIR / "state" / AROUND.name, json.dumps({"made": made}))


@contextlib.contextmanager
def only_one(verb: str) -> Iterator[None]:
    """Two at once: the second is refused."""
    with open(os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
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
