#!/usr/bin/env python3
"""usage: sudo python3 nova.py [-v] [-p] [--dry-run] VERB [ARGUMENT...]

A real OpenStack Nova on this machine by one command, and back again: nova.sh, for today's OpenStack.

  branch [SOURCE] [DIR]  fetch nova's source into DIR (default: nova)
  install [DIR]          packages, OpenStack's environment, databases, the test image
  run [DIR]              a new cloud, every service in a window of one screen session; taken down when that ends
  run_detached [DIR]     the same in the background: the cloud stays up
  status [DIR] [--json]  windows, APIs, instances, addresses: a table; exit code 0 when all is well
  stop [DIR]             end every process and keep the cloud: users, images, networks, instances, volumes
  start [DIR]            bring that cloud back, also after a reboot: instances that ran run again
  terminate [DIR]        end every instance and every volume
  clean [DIR]            end the session and every process that it started
  scrub [DIR]            remove what a cloud left on the machine: bridges, rules, domains; nothing can be started then
  uninstall [DIR] [--keep-cache]  remove the rest, packages too; tell what differs from before the first command
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
import fcntl
import functools
import getpass
import hashlib
import importlib
import io
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


DRY_RUN = "--dry-run" in sys.argv  # changes are said and not made
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


def download(url: str, sha256: str = "") -> bytes:
    """The bytes behind `url`, refused when they are not the ones that were asked for."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except OSError as error:
        raise Failure(f"cannot download {url}: {error}", NETWORK) from None
    if sha256 and hashlib.sha256(content).hexdigest() != sha256.removeprefix("sha256:"):
        raise Failure(f"{url} is not the file that was asked for (its SHA-256 differs)", "repeat; if it stays so, do not use it")
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

    if DRY_RUN and not made():
        print(f"python3 {HERE}/nova.py settings  # it makes {TOOL}; until then there is nothing to look with")
        sys.exit(0)
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
    words = [w for w in sys.argv[1:] if w not in (*FLAGS, "--json", "--yes", "--keep-cache")]
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
    USE_KSM: bool          = setting(True,         "1: where the kernel can, it keeps equal pages of the cloud's memory once")

    @property
    def VOLUMES_LVM(self) -> bool:
        """Not a setting: are volumes nova.sh's, LVM by iSCSI, or files, because this kernel cannot?"""
        return asked_for(self, "VOLUMES_SIZE") and has_iscsi()

    @property
    def MERGES(self) -> bool:
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

# The cloud's folder as its processes see it (private_mounts): short enough for sockets, the same wherever DIR is.
HOME  = Path("/run/nova.py")
STATE = HOME / "state"
ENV   = STATE / "env"
EC2   = STATE / "ec2"  # an environment of its own: ec2-api's last release wants older libraries
CONF  = STATE / "conf"
KEPT  = STATE / "kept.json"  # there while DIR has a whole cloud, up or not: what it was made with, for start
KSM   = Path("/sys/kernel/mm/ksm")  # the kernel's same-page merging
CONSOLE_PORTS = range(26000, 27000)  # the instances' VNC servers and serial ports, on loopback
PATHS = dict(
    HOME=HOME, STATE=STATE, CONF=CONF, ENV=ENV, EC2=EC2, BIN=ENV / "bin", USER=USER, GUEST_USER=GUEST_USER,
    OVS=STATE / "ovs", OVSDB=f"unix:{STATE}/ovs/db.sock", MAC_PREFIX="fa:6e:70",
    RABBIT_PORT=35672, RABBIT_DIST_PORT=35673, EPMD_PORT=34369, TGT_PORT=33260, SWIFT_PORT=36200,
    LDAP_PORT=33890, LDAP_ADMIN_PORT=33891,
    VNC_MIN=CONSOLE_PORTS[0], VNC_MAX=CONSOLE_PORTS[499], SERIAL_MIN=CONSOLE_PORTS[500], SERIAL_MAX=CONSOLE_PORTS[-1],
)

# folder under DIR            owner
FOLDERS = (
    ("instances",               PRIVSEP),
    ("images",                  ROOT),
    ("state/log",               ROOT),
    ("state/run",               ROOT),
    ("state/cache",             ROOT),
    ("state/conf",              ROOT),  # root's own shells run what is in it
    ("state/conf/domains",      USER),
    ("state/conf/swift",        USER),
    ("state/bin",               ROOT),
    ("state/locks",             USER),
    ("state/nova",              USER),
    ("state/keystone/fernet",   USER),
    ("state/keystone/credential", USER),
    ("state/glance/images",     USER),
    ("state/glance/staging",    USER),
    ("state/glance/tasks",      USER),
    ("state/neutron",           USER),
    ("state/mysql",             USER),
    ("state/databases",         USER),
    ("state/rabbit",            USER),
    ("state/ovs",               USER),
    ("state/cinder",            USER),
    ("state/volumes",           PRIVSEP),
    ("state/swift",             USER),
    ("state/libvirt/etc/hooks", ROOT),
    ("state/ldap",              USER),
)

# What every run begins without.
EMPTIED = (
    "state/mysql", "state/databases", "state/rabbit", "state/ovs", "state/nova", "state/glance/images", "state/neutron",
    "state/cinder", "state/volumes", "state/swift", "state/ldap", "state/opendj",
    "state/libvirt/etc/qemu", "state/libvirt/etc/lxc", "state/libvirt/lib", "state/libvirt/run", "instances",
)

# What a cloud that was just made has in STATE; kept by the first run, copied by those that would make the same one.
NEW = ("databases", "glance/images", "ovs/ovnnb.db")

# What start begins without: it ended with the processes that it was about. Messages do not outlive RabbitMQ; switches and
# their ports are made anew by create_bridges and by nova.
ENDED = ("state/rabbit", "state/libvirt/run", "state/ovs/conf.db")

# libvirt, tgt and sudo's rules are the cloud's own: a folder of the machine, and the one under DIR that its processes see there.
PRIVATE_FOLDERS = (
    ("/etc/libvirt",       "state/libvirt/etc"),
    ("/run/libvirt",       "state/libvirt/run"),
    ("/var/lib/libvirt",   "state/libvirt/lib"),
    ("/var/cache/libvirt", "state/libvirt/cache"),
    ("/var/log/libvirt",   "state/libvirt/log"),
    ("/etc/sudoers.d",     "state/sudo"),
    ("/etc/tgt",           "state/tgt"),
)

# A setting that puts a folder under DIR elsewhere: there, a folder of our own is mounted in its place.
ELSEWHERE = (
    ("INSTANCES_PATH",     "instances"),
    ("LOCK_PATH",          "state/locks"),
)

# template             written to                       mode   owner
CONFIG_FILES = (
    ("nova.conf.tmpl",             CONF / "nova.conf",            0o600, USER),
    ("conf/nova-db.conf.tmpl",     CONF / "nova-db.conf",         0o600, USER),
    ("conf/keystone.conf.tmpl",    CONF / "keystone.conf",        0o600, USER),
    ("conf/glance-api.conf.tmpl",  CONF / "glance-api.conf",      0o600, USER),
    ("conf/placement.conf.tmpl",   CONF / "placement.conf",       0o600, USER),
    ("conf/neutron.conf.tmpl",     CONF / "neutron.conf",         0o600, USER),
    ("conf/cinder.conf.tmpl",      CONF / "cinder.conf",          0o600, USER),
    ("conf/cinder_files.py",       CONF / "cinder_files.py",      0o644, ROOT),
    ("conf/cinder-files.yaml",     CONF / "cinder-files.yaml",    0o644, ROOT),
    ("conf/swift.conf.tmpl",       CONF / "swift/swift.conf",     0o644, USER),
    ("conf/swift-proxy.conf.tmpl", CONF / "swift-proxy.conf",     0o600, USER),
    ("conf/swift-store.conf.tmpl", CONF / "swift-store.conf",     0o644, USER),
    ("conf/swift_store.py",        CONF / "swift_store.py",       0o644, USER),
    ("conf/ec2api.conf.tmpl",      CONF / "ec2api.conf",          0o600, USER),
    ("conf/ec2-paste.ini.tmpl",    CONF / "ec2-paste.ini",        0o644, USER),
    ("conf/ec2_auth.py",           CONF / "ec2_auth.py",          0o644, USER),
    ("conf/my.cnf.tmpl",           CONF / "my.cnf",               0o600, USER),
    ("conf/grants.sql.tmpl",       CONF / "grants.sql",           0o600, USER),
    ("conf/rabbitmq.conf.tmpl",    CONF / "rabbitmq.conf",        0o600, USER),
    ("conf/rabbitmq-plugins.tmpl", CONF / "rabbitmq-plugins",     0o644, USER),
    ("conf/uwsgi.ini.tmpl",        CONF / "uwsgi.ini",            0o644, USER),
    ("conf/nat.nft.tmpl",          CONF / "nat.nft",              0o644, ROOT),
    ("conf/consoles.nft.tmpl",     CONF / "consoles.nft",         0o644, ROOT),
    ("conf/swift.nft.tmpl",        CONF / "swift.nft",            0o644, ROOT),
    ("conf/nat6.nft.tmpl",         CONF / "nat6.nft",             0o644, ROOT),
    ("conf/forward.nft.tmpl",      CONF / "forward.nft",          0o644, ROOT),
    ("conf/forward6.nft.tmpl",     CONF / "forward6.nft",         0o644, ROOT),
    ("conf/window.tmpl",           CONF / "window",               0o644, ROOT),
    ("conf/again.tmpl",            CONF / "again",                0o755, ROOT),
    ("conf/fork.tmpl",             CONF / "fork",                 0o755, ROOT),
    ("conf/preload.py",            CONF / "preload.py",           0o644, ROOT),
    ("conf/alone.py",              CONF / "alone",                0o755, ROOT),
    ("conf/nova_apis.py",          CONF / "nova_apis.py",         0o644, USER),
    ("conf/map-host.py",           CONF / "map-host",             0o755, ROOT),
    ("conf/lost-builds.py",        CONF / "lost-builds.py",       0o644, ROOT),
    ("conf/test.tmpl",             CONF / "test",                 0o644, ROOT),
    ("conf/screenrc.tmpl",         CONF / "screenrc",             0o644, ROOT),
    ("conf/libvirtd.conf.tmpl",    Path("/etc/libvirt/libvirtd.conf"), 0o644, ROOT),
    ("conf/qemu.conf.tmpl",        Path("/etc/libvirt/qemu.conf"),     0o644, ROOT),
    ("conf/libvirt-hook.tmpl",     Path("/etc/libvirt/hooks/qemu"),    0o755, ROOT),
    ("conf/libvirt-hook.tmpl",     Path("/etc/libvirt/hooks/lxc"),     0o755, ROOT),
    ("conf/targets.conf.tmpl",     Path("/etc/tgt/targets.conf"),      0o644, ROOT),
    ("conf/sudoers.tmpl",          Path("/etc/sudoers.d/nova-py"),     0o440, ROOT),
    ("conf/rootwrap.conf.tmpl",    Path("/etc/sudoers.d/rootwrap.conf"), 0o644, ROOT),
    ("conf/keystone.ldap.conf.tmpl", CONF / "domains/keystone.ldap.conf", 0o600, USER),
    ("conf/tree.ldif.tmpl",        CONF / "tree.ldif",            0o600, ROOT),
    ("conf/slapd.conf.tmpl",       CONF / "slapd.conf",           0o600, USER),
    ("conf/opendj.tmpl",           CONF / "opendj",               0o600, ROOT),
    ("conf/demorc.tmpl",           HOME / "demorc",               0o600, "caller"),
    ("novarc.tmpl",                HOME / "novarc",               0o600, "caller"),
    ("conf/openstack.tmpl",        STATE / "bin/openstack",       0o755, ROOT),
    ("conf/clouds.yaml.tmpl",      HOME / "clouds.yaml",          0o600, "caller"),
)

# ---- Tables: the services, one window each, in the order in which they start ----


class Service(NamedTuple):
    """A row below: window, user, command, where it answers: a URL, a host:port, a socket, a queue; "" where the APIs tell."""

    window: str
    user: str
    command: str
    answers: str = ""


API = "uwsgi --ini $CONF/uwsgi.ini --http-socket"
NOVA_CONF = "--config-file $CONF/nova.conf --config-file $CONF/nova-db.conf"

# It imports what the services behind a "fork" need, for seconds: first of all, beside whatever else has to be done.
PRELOAD = (
    Service("preload",      ROOT, "python -P $CONF/preload.py $USER", "$STATE/run/preload-any"),
)
# What OpenStack stands on. Guests, which libvirtd starts, come after the control plane, or it would starve beside twenty
# that boot (conf/libvirt-hook.tmpl); tini takes note of their end at once, where process 1 may not.
SERVERS = (
    Service("rabbit",       USER, "env HOME=$STATE/rabbit /usr/lib/rabbitmq/bin/rabbitmq-server", "127.0.0.1:$RABBIT_PORT"),
    Service("mysql",        USER, "mariadbd --defaults-file=$CONF/my.cnf --datadir=$STATE/databases/mysql", "$STATE/mysql/sock"),
    Service("ovsdb",        USER, "ovsdb-server --remote=p$OVSDB --unixctl=$OVS/ovsdb.ctl"
                                  " $OVS/conf.db $OVS/ovnnb.db $OVS/ovnsb.db", "$OVS/db.sock"),
    Service("vswitchd",     ROOT, "ovs-vswitchd --unixctl=$OVS/vswitchd.ctl $OVSDB", "$OVS/vswitchd.ctl"),
    Service("northd",       USER, "ovn-northd --unixctl=$OVS/northd.ctl --ovnnb-db=$OVSDB --ovnsb-db=$OVSDB", "$OVS/northd.ctl"),
    Service("libvirt",      ROOT, "tini -s -- setpriv --pdeathsig=KILL nice -n 10 libvirtd --pid-file $STATE/run/libvirtd.pid",
                                  "/run/libvirt/libvirt-sock"),
    Service("ldap",         USER, "slapd -f $CONF/slapd.conf -h ldap://127.0.0.1:$LDAP_PORT -d none", "127.0.0.1:$LDAP_PORT"),
    Service("opendj",       ROOT, "bash $CONF/opendj", "127.0.0.1:$LDAP_PORT"),
    Service("tgt",          ROOT, "tgtd --foreground --iscsi portal=127.0.0.1:$TGT_PORT", "127.0.0.1:$TGT_PORT"),
    Service("iscsi",        ROOT, "sh -c '/usr/lib/open-iscsi/startup-checks.sh && exec iscsid --foreground'"),
    Service("objects",      USER, "python $CONF/swift_store.py $CONF/swift-store.conf -v", "127.0.0.1:$SWIFT_PORT"),
)
# OpenStack's own. ovn-controller (23.03) crashes where the bridges are not there yet, so it is here; keystone comes
# first of the others, because they all ask it who is asking. It has one thread, because its middleware (30.0.0) keeps a
# request's token where all threads look (AuthContextMiddleware.token): one request was judged by another one's token.
CONTROL = (
    Service("ovn",          ROOT, "ovn-controller $OVSDB"),
    Service("keystone",     USER, f"fork any {API} $HOST_IP:5000 --threads 1 -w keystone.wsgi.api", "http://$HOST_IP:5000/v3"),
    Service("placement",    USER, f"fork any {API} $HOST_IP:8778 -w placement.wsgi.api", "http://$HOST_IP:8778/"),
    Service("network",      USER, f"fork net {API} $HOST_IP:9696 -w neutron.wsgi.api", "http://$HOST_IP:9696/"),
    Service("api",          USER, f"fork nova {API} $HOST_IP:8774 --http-socket 127.0.0.1:8775 --wsgi-file $CONF/nova_apis.py",
                                  "http://$HOST_IP:8774/"),
    Service("conductor",    USER, f"fork nova alone nova-conductor {NOVA_CONF}", "amqp:conductor"),
    Service("glance",       USER, f"fork any {API} $HOST_IP:9292 -w glance.wsgi.api", "http://$HOST_IP:9292/"),
    Service("volume-api",   USER, f"{API} $HOST_IP:8776 -w cinder.wsgi.api"
                                  " --pyargv '--config-file $CONF/cinder.conf'", "http://$HOST_IP:8776/"),
    Service("objectstore",  USER, "swift-proxy-server $CONF/swift-proxy.conf -v", "http://$HOST_IP:3333/healthcheck"),
    Service("ec2",          USER, "env PYTHONPATH=$CONF $EC2/bin/ec2-api --config-file $CONF/ec2api.conf", "http://$HOST_IP:8773/"),
    Service("novnc",        USER, f"nova-novncproxy {NOVA_CONF} --web $STATE/novnc/usr/share/novnc", "$HOST_IP:6080"),
    Service("serial",       USER, f"nova-serialproxy {NOVA_CONF}", "$HOST_IP:6083"),
)
# When they start, they ask the APIs: the scheduler asks placement.
WORKERS = (
    Service("scheduler",    USER, f"fork nova alone nova-scheduler {NOVA_CONF}", "amqp:scheduler"),
    Service("network-meta", PRIVSEP, "fork net neutron-ovn-metadata-agent --config-file $CONF/neutron.conf"),
    Service("network-ovn",  USER, "fork net alone neutron-ovn-maintenance-worker --config-file $CONF/neutron.conf"),
    Service("volume-sched", USER, "cinder-scheduler --config-file $CONF/cinder.conf", "amqp:cinder-scheduler"),
    Service("volume",       DISKS, "env PYTHONPATH=$CONF cinder-volume --config-file $CONF/cinder.conf"),
    Service("volume-backup", DISKS, "cinder-backup --config-file $CONF/cinder.conf", "amqp:cinder-backup"),
)
# Last: when it starts, it asks the conductor, and waits ten seconds where there is none yet.
COMPUTE = (
    Service("compute",      DISKS, "fork nova nova-compute --config-file $CONF/nova.conf", "amqp:compute.$HOSTNAME"),
)
OPENSTACK = CONTROL + WORKERS + COMPUTE
# When all have the memory that they need.
MERGER = (Service("ksm",    ROOT, "ksm $STATE/run/ksm"),)
SERVICES = {service.window: service for service in PRELOAD + SERVERS + OPENSTACK + MERGER}

# ---- Tables: databases, endpoints, flavors ----

# What templates call the databases, by USE_MYSQL. neutron is always in MariaDB: its project does not support SQLite (its
# migrations alter constraints, and it opens a second writing session while its first is open). CELL is for nova-manage,
# which puts the parts of nova's own connection in: a password has no place in argv.
DATABASE_URLS = {
    True:  dict(DATABASE="mysql+pymysql://nova:$MYSQL_PASS@localhost", QUERY=f"unix_socket={STATE}/mysql/sock&ssl_disabled=true",
                CELL="{scheme}://{username}:{password}@{hostname}"),
    False: dict(DATABASE=f"sqlite:///{STATE}/databases/sqlite", QUERY="plugin=immediate&timeout=60",
                CELL=f"sqlite:///{STATE}/databases/sqlite"),
}
GLANCE_MANAGE = "$CONF/fork any glance-manage --config-file $CONF/glance-api.conf"
# database, and the commands that fill it; these run beside those of the other rows
DATABASES = (
    (("nova_api", "nova_cell0", "nova_cell1"), (
        f"$CONF/fork nova nova-manage {NOVA_CONF} api_db sync",
        f"$CONF/fork nova nova-manage {NOVA_CONF} cell_v2 map_cell0 --database_connection $CELL/nova_cell0?{{query}}",
        f"$CONF/fork nova nova-manage {NOVA_CONF} cell_v2 create_cell --name cell1"
        " --database_connection $CELL/nova_cell1?{query} --transport-url {scheme}://{username}:{password}@{hostname}:{port}/",
        f"$CONF/fork nova $CONF/map-host {NOVA_CONF}",
        f"$CONF/fork nova nova-manage {NOVA_CONF} db sync")),
    (("keystone",),  ("$CONF/fork any keystone-manage --config-file $CONF/keystone.conf db_sync",
                      "$CONF/fork any keystone-manage --config-file $CONF/keystone.conf bootstrap")),
    (("glance",),    (f"{GLANCE_MANAGE} db_sync", f"{GLANCE_MANAGE} db_load_metadefs $ENV/etc/glance/metadefs")),
    (("placement",), ("$CONF/fork any placement-manage --config-file $CONF/placement.conf db sync",)),
    (("neutron",),   ("$CONF/fork net neutron-db-manage --config-file $CONF/neutron.conf upgrade heads",)),
    (("cinder",),    ("cinder-manage --config-file $CONF/cinder.conf db sync",)),
    (("ec2api",),    ("$EC2/bin/ec2-api-manage --config-file $CONF/ec2api.conf db_sync",)),
)

# user,       type,         url
ENDPOINTS = (
    ("glance",    "image",     "http://$HOST_IP:9292"),
    ("placement", "placement", "http://$HOST_IP:8778"),
    ("nova",      "compute",   "http://$HOST_IP:8774/v2.1"),
    ("neutron",   "network",   "http://$HOST_IP:9696"),
    ("cinder",    "block-storage", "http://$HOST_IP:8776/v3"),
    ("swift",     "object-store",  "http://$HOST_IP:3333/v1/AUTH_$$(project_id)s"),
    ("ec2",       "ec2",       "http://$HOST_IP:8773/"),
)


# user,              where,        role: the accounts that clients' jobs expect, named as DevStack names them
ACCOUNTS = (
    ("demo",            "demo",     "member"),
    ("demo_reader",     "demo",     "reader"),
    ("alt_demo",        "alt_demo", "member"),
    ("alt_demo_member", "alt_demo", "member"),
    ("alt_demo_reader", "alt_demo", "reader"),
    ("system_member",   "system",   "member"),
    ("system_reader",   "system",   "reader"),
    ("admin",           "demo",     "admin"),
    ("admin",           "alt_demo", "admin"),
)

# what a cloud has, in which database and table, but for what is deleted; and which of them something is being done to
THINGS = (
    ("instances",   "nova_cell1", "instances WHERE deleted = 0", "task_state <> '' AND vm_state <> 'error'"),
    ("volumes",     "cinder",     "volumes WHERE NOT deleted",   "status LIKE '%ing' AND status NOT LIKE 'error%'"),
    ("snapshots",   "cinder",     "snapshots WHERE NOT deleted", "status LIKE '%ing' AND status NOT LIKE 'error%'"),
    ("backups",     "cinder",     "backups WHERE NOT deleted",   "status LIKE '%ing' AND status NOT LIKE 'error%'"),
)


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

# name,     id,  MiB,   GiB, CPUs
FLAVORS = (
    ("m1.tiny",   "1",   512,   1, 1),
    ("m1.small",  "2",  2048,  20, 1),
    ("m1.medium", "3",  4096,  40, 2),
    ("m1.large",  "4",  8192,  80, 4),
    ("m1.xlarge", "5", 16384, 160, 8),
    # what clients' jobs expect, named as DevStack names them
    ("m1.nano",   "42",  192,   1, 1),
    ("m1.micro",  "84",  256,   1, 1),
    ("cirros256", "c1",  256,   1, 1),
    ("ds512M",    "d1",  512,   5, 1),
    ("ds1G",      "d2", 1024,  10, 1),
    ("ds2G",      "d3", 2048,  10, 2),
    ("ds4G",      "d4", 4096,  20, 4),
)
# setting of nova, its value with QUOTAS=1: upstream's default
QUOTAS = (("INSTANCES", 10), ("CORES", 20), ("RAM", 51200))

# pc computes its interrupts anew for each device; q35's SATA is none of Debian 12's
HARDWARE = {"hw_machine_type": "q35", "hw_cdrom_bus": "scsi", "hw_scsi_model": "virtio-scsi"}
# what takes an emulated processor more than a second of the four that ami-tty boots
QUICK = "no_timer_check mitigations=off cryptomgr.notests nokaslr lsm= initcall_blacklist=init_kprobe_trace"
# image,            format,  file,                properties (a part's name stands for its id)
IMAGE_PARTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("ami-tty-kernel",  "aki",   "vmlinuz",           {}),
    ("ami-tty-ramdisk", "ari",   "initrd",            {}),
    ("ami-tty",         "ami",   "root.img",          {"kernel_id": "ami-tty-kernel", "ramdisk_id": "ami-tty-ramdisk",
                         "os_command_line": f"root=LABEL=ami-tty console=tty1 console=ttyS0 quiet {QUICK}", **HARDWARE}),
    ("debian-kernel",   "aki",   "debian/vmlinuz",    {}),
    ("debian-ramdisk",  "ari",   "debian/initrd",     {}),
    ("debian",          "qcow2", "debian/root.qcow2", {"kernel_id": "debian-kernel", "ramdisk_id": "debian-ramdisk",
                         "os_command_line": f"root=LABEL=debian console=tty1 console=ttyS0 quiet {QUICK}"
                                            " systemd.service_watchdogs=no",  # it may be slow, and is well all the same
                         **HARDWARE, "min_disk": 1, "min_ram": 256}),
)

# image,     what builds it,              folder of its parts
BUILDERS = (
    ("ami-tty", "conf/ami-tty/build.py",    "images"),
    ("debian",  "conf/debian/bootstrap.py", "images/debian"),
)

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

# group of pyproject.toml, and which environment it is added to
GROUPS = (
    ("volumes",    ENV),
    ("swift",      ENV),
    ("unit-tests", ENV),
    ("ec2",        EC2),
)

# what only the distribution has built for its Python: package, its files; OpenStack's environment sees them
MODULES = (
    ("python3-libvirt",  "libvirt*"),
    ("python3-ldap",     "*ldap*"),   # and python3-ldappool
    ("python3-ldap",     "ldif.py"),
    ("python3-pyasn1",   "pyasn1*"),  # and its modules, which python3-ldap imports
)

# TEST   the modules of nova/tests/unit that it runs
UNIT_TESTS = {
    "1": (
        "test_context", "test_versions", "api/openstack/test_api_version_request", "api/openstack/compute/test_versions",
        "scheduler/filters/test_*", "scheduler/weights/test_*",          # where an instance goes
        "network/test_os_vif_util", "virt/test_hardware", "virt/libvirt/test_config",  # and what it is given there
    ),
    "all": ("**/test_*",),
}

# What only a setting asks for: first columns of rows above; packages: conf/packages.toml.
ONLY_WITH: dict[str, set[object]] = {
    "VOLUMES_SIZE": {"state/cinder", "state/volumes", "conf/cinder.conf.tmpl", "conf/rootwrap.conf.tmpl",
                     "conf/cinder_files.py", "conf/cinder-files.yaml", "volume-api", "volume-sched", "volume", "volume-backup",
                     ("cinder",), "cinder", "volumes", "snapshots", "backups"},
    "VOLUMES_LVM":  {"/etc/tgt", "conf/targets.conf.tmpl", "tgt", "iscsi"},
    "USE_SWIFT":    {"state/swift", "state/conf/swift", "conf/swift.conf.tmpl", "conf/swift-proxy.conf.tmpl",
                     "conf/swift-store.conf.tmpl", "conf/swift_store.py", "conf/swift.nft.tmpl",
                     "objects", "objectstore", "swift"},
    "USE_EC2":      {"ec2", ("ec2api",), "conf/ec2api.conf.tmpl", "conf/ec2-paste.ini.tmpl", "conf/ec2_auth.py"},
    "CONSOLES":     {"novnc", "serial", "conf/consoles.nft.tmpl"},
    "TEST":         {"unit-tests"},
    "MERGES":       {"ksm"},
    "USE_IPV6":     {"conf/nat6.nft.tmpl", "conf/forward6.nft.tmpl"},
    "DIRECTORY":    {"state/conf/domains", "conf/keystone.ldap.conf.tmpl", "conf/tree.ldif.tmpl", "conf/demorc.tmpl",
                     "python3-ldap", "python3-pyasn1"},
    "DIRECTORY=slapd": {"state/ldap", "conf/slapd.conf.tmpl", "ldap"},
    "USE_OPENDJ":   {"conf/opendj.tmpl", "opendj"},
    "IMAGE=debian": {"debian-kernel", "debian-ramdisk", "debian"},
    "LIBVIRT_TYPE=lxc": set(),
}
# fmt: on


def rows(cfg: Settings, *tables: tuple[Any, ...]) -> list[Any]:
    """The tables' rows that these settings ask for, in their order."""
    off = {name for setting, names in ONLY_WITH.items() if not asked_for(cfg, setting) for name in names}
    return [row for table in tables for row in table if row[0] not in off]


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
    disable=not sys.stderr.isatty() or not {"-v", "--dry-run"}.isdisjoint(sys.argv),
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
        places = filter(None, (cfg.DIR, cfg.INSTANCES_PATH, cfg.LOCK_PATH, "/var/cache/apt", "/usr", tempfile.gettempdir()))
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


# ---- Changes: each is said as a line for a shell and then made; with --dry-run it is only said ----


def change(line: str, make: Callable[[], Any], text: str = "") -> Any:
    """The gate that every change of the machine goes through: what `make` returns; None with --dry-run.

    `line` does the same in a shell, reading `text`; secrets stand in it by their names. What `make` itself changes is
    part of it, so the log has that further to the right.
    """
    if not DRY_RUN:
        depth = getattr(AT_WORK, "depth", 0)
        log.debug("%s+ %s", "  " * depth, hidden(line))
        AT_WORK.depth = depth + 1
        try:
            return make()
        finally:
            AT_WORK.depth = depth
    escaped = re.sub(r"[\\$`]", r"\\\g<0>", text.removesuffix("\n"))
    print(hidden(f"{line} <<END\n{escaped}\nEND" if text else line), flush=True)


def hidden(text: str) -> str:
    """The same with $NAME for each secret that is known, and with the names of resources for their ids."""
    given = {name: os.environ.get(name, "") for name in SECRETS}
    of_kept = {name: secret for name, secret in kept(KEPT).items() if name in SECRETS}
    known = {secret: f"${name}" for name, secret in {**of_kept, **given, **passwords(STATE)}.items() if secret}
    for value, name in {**known, **NAMES, "@@": "$"}.items():  # @@: see values
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


# What commands say is read, by the log's reader at least; and a Python in front of the distribution's breaks its programs.
PLAIN = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"}


def do(*argv: object, user: str = ROOT, text: str = "", env: Mapping[str, str] = {}, cwd: object = "/", hint: str = "") -> None:
    """Run a command that changes the machine; log all that it says; raise Failure with its last lines and `hint`.

    `text` is its standard input, `env` is added to its environment: secrets go there, argv is logged.
    """
    words = [str(word) for word in argv]
    if user != ROOT:
        words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *words]
    line = [f"{name}={shlex.quote(value)}" for name, value in env.items() if DRY_RUN]  # secrets among them: not in the log
    line += ["env", f"--chdir={cwd}"] if str(cwd) != "/" else []
    change(" ".join([*line, shlex.join(words)]), lambda: carry_out(words, text, env, cwd, hint), text)


def carry_out(words: list[str], text: str = "", env: Mapping[str, str] = {}, cwd: object = "/", hint: str = "") -> None:
    """Run a command for `do`."""
    tail: collections.deque[str] = collections.deque(maxlen=20)
    bar = getattr(AT_WORK, "bar", None)

    def keep(line: str) -> None:
        log.debug("  %s", line.rstrip())
        tail.append(line.rstrip())
        if bar is not None:
            BARS.update(bar, said=line.strip()[:70])

    options: Any = dict(_in=text, _out=keep, _err_to_out=True, _tty_out=False, _cwd=str(cwd))
    try:
        command(words, **options, _env={**os.environ, **PLAIN, **env})
    except sh.CommandNotFound:
        raise Failure(f"{words[0]} is not installed", "sudo python3 nova.py install") from None
    except sh.ErrorReturnCode as error:
        raise Failure(f"{shlex.join(words)}\n  ended with exit code {error.exit_code}", hint, tuple(tail)) from None


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


def ask(*argv: object, ok: tuple[int, ...] = (0,), default: str | None = None, errors: bool = False) -> str:
    """What a command says, stripped (with `errors` too); it must change nothing. `default`, where given, is for failures."""
    words = [str(word) for word in argv]
    log.debug("? %s", shlex.join(words))
    try:
        options: Any = dict(_in="", _tty_out=False, _ok_code=ok, _err_to_out=errors, _env={**os.environ, **PLAIN})
        return str(command(words, **options)).strip()
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


def wait_for(what: str, ready: Callable[[], object] | str, seconds: float, service: Service | None = None) -> None:
    """Look five times a second until `ready` is true, or somebody answers there, where it is a place; nothing else sleeps.

    A probe may raise: its last error is told when the time is up. The death of `service` in its window ends the wait.
    """
    if DRY_RUN:
        shell = isinstance(ready, str) and not ready.startswith("amqp:")
        return print(f"until {looked_at(str(ready))}; do sleep 0.2; done" if shell else f"# wait for {what}")
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
        if service and (line := text_of(STATE / f"run/{service.window}.died").strip()):
            raise Failure(f"the service of a window died: {line}", tail=last_lines(service.window))
        time.sleep(0.2)
    tail = last_lines(service.window) if service else ()
    raise Failure(f"{what} is not ready after {seconds:.0f} s ({last})", tail=tail)


# ---- The machine: files, the record, windows, processes ----


def values(cfg: Settings) -> dict[str, Any]:
    """What templates may name: settings, paths, ports, passwords."""
    chosen = asdict(cfg)
    # Those that install would make have names only.
    known = {name: f"@@{name}" for name in SECRETS if DRY_RUN and not chosen[name]} | passwords(STATE)
    urls = {name: string.Template(url).safe_substitute(known) for name, url in DATABASE_URLS[cfg.USE_MYSQL].items()}
    machine = {"HOSTNAME": socket.gethostname()}
    kernel = has_kernel_datapath()
    machine |= {"DATAPATH": "system" if kernel else "netdev", "STATELESS": str(not kernel)}
    machine["INTERFACES"] = ", ".join(f'"{name}"' for name in netifaces.interfaces() if name not in BRIDGES)
    machine |= {"CONFIG_DRIVE": str(not MANAGERS[cfg.NET_MAN].dhcp), "VOLUMES_BACKEND": "lvm" if cfg.VOLUMES_LVM else "files"}
    machine["BACKUPS"] = "swift.Swift" if cfg.USE_SWIFT else "posix.Posix"
    # A key of 256 bits in hex, as the key managers of cinder and nova want it; a dry run shows no secret.
    key = hashlib.sha256(known["VOLUMES_SECRET"].encode()).hexdigest() if "VOLUMES_SECRET" in known else ""
    machine["VOLUMES_KEY"] = "@@(printf %s @@VOLUMES_SECRET | sha256sum | head -c 64)" if DRY_RUN else key
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
    line = f"install --mode={mode:o} {owned_by(owner)} /dev/stdin {path}" + ("" if text else " </dev/null")
    change(line, lambda: put_file(path, text, mode, owner), text)


def owned_by(owner: str) -> str:
    """As install is told it."""
    user = owner.partition(":")[0]
    return "--owner=${SUDO_UID:-0} --group=${SUDO_GID:-0}" if owner == "caller" else f"--owner={user} --group={user}"


def put_file(path: Path, content: str, mode: int, owner: str) -> None:
    """Write a file for write_file."""
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
    """Make it `owner`'s; "caller" is who called sudo."""
    user = pwd.getpwnam(owner.partition(":")[0] if owner != "caller" else ROOT)
    uid, gid = user.pw_uid, user.pw_gid
    if owner == "caller":
        uid, gid = int(os.environ.get("SUDO_UID", uid)), int(os.environ.get("SUDO_GID", gid))
    os.chown(path, uid, gid, follow_symlinks=False)


def record(*undo: object, lasting: bool = False, path: Path | None = None) -> None:
    """Write down the command that takes back what comes next, before it comes; `lasting`: what a reboot does not take back."""
    line = shlex.join(map(str, undo))  # on a line of its own, wherever the last one was cut off
    append(path or STATE / "record", f"\n{line}  # {checksum(line, '' if lasting else boot())}\n")


def append(path: Path, text: str) -> None:
    """Add it to a file's end; it is on the disk when this returns."""

    def write() -> None:
        with open(path, "a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    change(f"cat >>{path}", write, text)


def checksum(line: str, boot: str) -> str:
    """A line that was cut off has another one; so has one of before a reboot: what it names may be somebody else's by now."""
    return f"{zlib.crc32((line + boot).encode()):08x}"


def boot() -> str:
    """Which boot of this machine it is; of a container, its own."""
    kernel, first = text_of("/proc/sys/kernel/random/boot_id"), text_of("/proc/1/stat")
    return kernel + first.rpartition(")")[2].split()[19] if kernel else ""


def recorded(path: Path | None = None) -> list[str]:
    """The lines of a record that are whole and still mean what they meant."""
    lines = path.read_text(errors="replace").split("\n") if (path := path or STATE / "record").exists() else []
    sums = {line: line.rpartition("  # ") for line in lines if line}
    return [line for line in lines if line and sums[line][2] in (checksum(sums[line][0], each) for each in ("", boot()))]


def undo_recorded(path: Path | None = None) -> None:
    """Take back everything in a record, last first; a line is gone only when it was tried.

    What would delete disks of a cloud that is kept stays for scrub.
    """
    lines, stay = recorded(path), list[str]()
    while lines:
        if not path and is_kept() and lines[-1].startswith(("rm ", "rmdir ", "vgremove ")):
            stay.insert(0, lines.pop())
            continue
        forgiven(do, *shlex.split(lines.pop(), comments=True))
        write_file(path or STATE / "record", "".join(f"{line}\n" for line in lines + stay))


def make_machine_folder(path: Path) -> None:
    """A folder of the machine's, with those that it is in; uninstall removes what was not there before."""
    for missing in [each for each in (path, *path.parents) if not each.exists()][::-1]:
        if MACHINE.exists():
            record("rmdir", missing, lasting=True, path=UNDOES)
        do("mkdir", missing)


NOT_OURS: list[str] = []  # what was mounted before private_mounts


def private_mounts(cfg: Settings) -> None:
    """DIR is at /run/nova.py, libvirt and network namespaces are the cloud's own: for nova.py and for all it starts.

    bootstrap called unshare, so nobody else sees these mounts: there is nothing to undo, the machine's own libvirt is
    never touched, a home folder need not be opened for QEMU, and whoever has HOME mounted is a process of this cloud.
    """
    NOT_OURS[:] = lines_of("/proc/self/mountinfo")
    make_machine_folder(HOME)
    if DRY_RUN and not HOME.exists():
        HOME.mkdir()
        atexit.register(HOME.rmdir)
        atexit.register(carry_out, ["umount", str(HOME)])
    mount("--bind", cfg.DIR.resolve(), HOME)
    if cfg.LIBVIRT_TYPE != "kvm" and Path("/dev/kvm").exists():
        # Where the device is there but does not work, libvirt probes QEMU anew at every call: ten seconds an instance.
        write_file(STATE / "no-kvm", "", 0o600)
        mount("--bind", STATE / "no-kvm", "/dev/kvm")
    make_machine_folder(Path("/run/netns"))
    mount("-t", "tmpfs", "tmpfs", "/run/netns")
    if cfg.LIBVIRT_TYPE == "lxc" and not has_cgroup2():
        forgiven(do, "umount", "--recursive", "--lazy", CGROUPS)  # libvirt would look for groups where it finds version 2
        mount("-t", "tmpfs", "tmpfs", CGROUPS)
        for name in CONTROLLERS:
            make_folder(CGROUPS / name)
            mount("-t", "cgroup", "-o", name, "cgroup", CGROUPS / name)


def mount(*words: object) -> None:
    """A mount that nobody sees but the cloud's processes and us; with --dry-run for us, where there is something to see."""
    do("mount", *words)
    if DRY_RUN and all(Path(str(place)).exists() for place in words if str(place).startswith("/")):
        carry_out(["mount", *map(str, words)])


CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpuacct", "devices", "memory")  # of control groups, version 1: without them libvirt starts no container


def has_cgroup2() -> bool:
    """Does version 2 of control groups limit memory here? Otherwise libvirt's containers need version 1."""
    return "memory" in text_of(CGROUPS / "cgroup.controllers")


def private_libvirt(cfg: Settings) -> None:
    """The rest of private_mounts; not before packages are installed, whose files belong to the machine."""
    for machine, own in rows(cfg, PRIVATE_FOLDERS):
        make_machine_folder(Path(machine))
        make_folder(HOME / own)
        mount("--bind", HOME / own, machine)


def leave_mounts() -> None:
    """Out of the private mounts: what is removed from here on is the machine's."""
    ours = [line.split()[4] for line in lines_of("/proc/self/mountinfo") if line not in NOT_OURS]
    for place in reversed(ours if NOT_OURS else []):
        forgiven(do, "umount", "--lazy", place)


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


def containers() -> list[str]:
    """The ids of the instances that are containers, as our libvirt has them."""
    return re.findall("<uuid>(.*)</uuid>", "".join(path.read_text() for path in STATE.glob("libvirt/etc/lxc/*.xml")))


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


def open_windows(cfg: Settings, services: Sequence[Service]) -> None:
    """Open their windows: in each the service, and when that was ended a shell in which up-arrow starts it again.

    Until then a smaller shell waits, which takes a third of the memory.
    """
    for service in services:
        command = f"keep {service.window} {service.user} {render(service.command, cfg)}"
        file = STATE / f"run/{service.window}.rc"
        remove(file.with_suffix(".died"))
        cases = f"*i*) history -s {shlex.quote(command)} ;;\n*) trap : INT QUIT; {command}; exec bash --rcfile {file} -i ;;"
        write_file(file, f". {CONF}/window\ncase $- in\n{cases}\nesac\n")
    lines = [f"screen -t {service.window} sh {STATE}/run/{service.window}.rc" for service in services]
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


def looked_at(place: str) -> str:
    """The same as a shell looks."""
    if place.startswith("http"):
        return f"curl --silent --output /dev/null {place}"
    return f"(: </dev/tcp/{place.replace(':', '/')}) 2>/dev/null" if ":" in place else f"test -S {place}"


def wait_for_services(cfg: Settings, *tables: tuple[Service, ...], seconds: float = 90) -> None:
    """Each window answers, where it has something to answer with; or a Failure that names it."""
    for service in rows(cfg, *tables):
        if place := render(service.answers, cfg):
            wait_for(f"{service.window} ({place})", place, seconds, service)


@functools.cache
def cloud(cfg: Settings) -> Any:
    """A connection to the running cloud as its admin."""
    import openstack  # here: a second that most verbs need not spend

    files = openstack.config.OpenStackConfig(config_files=[f"{HOME}/clouds.yaml"], secure_files=[], load_envvars=False)
    # with a full disk an API may wait for its database for ever
    return openstack.connection.Connection(config=files.get_one("nova", api_timeout=120))


# what the APIs' client calls it   and the openstack command; what is not here has the same name there
AS_OPTION = {
    "domain_id":                   "--domain {}",
    "network_id":                  "--network {}",
    "is_router_external":          "--external",
    "is_shared":                   "--share",
    "is_default":                  "--default",
    "prefixes":                    "--pool-prefix {0[0]}",
    "is_dhcp_enabled=True":        "--dhcp",
    "is_dhcp_enabled=False":       "--no-dhcp",
    "provider_segmentation_id":    "--provider-segment {}",
    "cidr":                        "--subnet-range {}",
    "gateway_ip":                  "--gateway {}",
    "allocation_pools":            "--allocation-pool start={0[0][start]},end={0[0][end]}",
    "external_gateway_info":       "--external-gateway {0[network_id]}",
    "visibility":                  "--{}",
    "data":                        "--file {0.name}",
    "flavor_id":                   "--flavor {}",
    "public_key":                  f"--public-key {STATE}/run/smoke.pub",
    "image_id":                    "--image {}",
    "networks":                    "--port {0[0][port]}",
    "options":                     "--ignore-lockout-failure-attempts",
    **{name: f"--property {name}={{!r}}" for name in ("kernel_id", "ramdisk_id", "os_command_line")},
}  # fmt: skip


NAMES: dict[str, str] = {}  # of resources that were made or found, by their ids: lines are read by people


class Unmade(NamedTuple):
    """With --dry-run, what stands for a resource: its name for all that is not known of it."""

    name: str

    def __getattr__(self, attribute: str) -> str:
        return self.name


def api(cfg: Settings, line: str, call: str, *arguments: Any, **options: Any) -> Any:
    """A change by an API: `call` of its client, as compute.create_server; `line` is the openstack command that does the same."""
    return change(line, lambda: attrgetter(call)(cloud(cfg))(*arguments, **options))


def create(cfg: Settings, service: str, kind: str, name: str, **attributes: Any) -> Any:
    """A new resource of an API."""
    line = f"openstack {kind.replace('_', ' ')} create"
    for key, value in attributes.items():
        form = AS_OPTION.get(key) or AS_OPTION.get(f"{key}={value}") or f"--{key.replace('_', '-')} {{}}"
        line += " " + form.format(value)
    return named(name, api(cfg, f"{line} {name}", f"{service}.create_{kind}", name=name, **attributes))


def delete(cfg: Settings, service: str, kind: str, resource: Any, **how: Any) -> None:
    """The end of a resource of an API."""
    words = ["openstack", {"ip": "floating ip"}.get(kind, kind), "delete", *(f"--{name}" for name in how), resource.id]
    api(cfg, " ".join(words), f"{service}.delete_{kind}", resource, **how)


def find(cfg: Settings, service: str, kind: str, name: str) -> Any:
    """The resource of this name, of those that a run begins with."""
    return named(name, None if DRY_RUN else attrgetter(f"{service}.find_{kind}")(cloud(cfg))(name))


def those_of(cfg: Settings, call: str, **options: Any) -> list[Any]:
    """What an API lists: `call` of its client, as compute.servers; nothing with --dry-run, which has no cloud to ask."""
    return [] if DRY_RUN else list(attrgetter(call)(cloud(cfg))(**options))


def named(name: str, resource: Any) -> Any:
    """The same resource, whose name is known from now on; with --dry-run what stands for it."""
    if resource is None:
        return Unmade(name)
    if re.fullmatch("[0-9a-f-]{32,36}", str(resource.id)):  # not a flavor's number
        NAMES[resource.id] = name
    return resource


# ---- The machine as it was: looked at before the first change, compared when all is undone ----

# Kept for all clouds of this machine: how it was before the first command; what undoes what was done to it; the folders of
# its clouds; what came with packages; and, while these are being installed, how it was before them, and which apt brings.
MACHINE = Path("/var/lib/nova.py")
LOCK = Path("/run/nova.py.lock")  # held by the one nova.py that is at work
CALLER = f"/proc/{os.getppid() or 1}"  # who called; 0: somebody outside of this container
BEFORE, UNDOES, CLOUDS = MACHINE / "before.json", MACHINE / "record", MACHINE / "clouds.json"
BROUGHT, INSTALLING, COMING = MACHINE / "brought.json", MACHINE / "installing.json", MACHINE / "coming"

Seen = dict[str, str]  # names, and how each is


def contents(*patterns: str) -> Seen:
    """Small files and what they say."""
    found = [path for pattern in patterns for path in Path("/").glob(pattern)]
    return {str(path): path.read_text().strip() for path in found}


def package_states() -> Seen:
    """Every package that dpkg knows, and its state."""
    said = ask("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n", default="").splitlines()
    return {name: state for state, name in map(str.split, sorted(said)) if state != "not-installed"}


def file_state(path: Path) -> str:
    """Mode, owner and content of a file or folder, or where a link leads."""
    seen = path.lstat()
    if path.is_symlink():
        return str(path.readlink())
    content = digest(path)[:16] if path.is_file() else ""
    return f"{seen.st_mode:o} {seen.st_uid}:{seen.st_gid} {content}".strip()


def addresses() -> Seen:
    """Every interface's, but for the IPv6 ones that are for a time only."""
    lasting = [(line.split()[-1], line.split()[0]) for line in lines_of("/proc/net/if_inet6") if " 80 " in line]
    found = [(nic, each) for nic, those in psutil.net_if_addrs().items() for each in those]
    others = [(nic, each.address) for nic, each in found if each.family != socket.AF_INET6]
    return dict.fromkeys([f"{nic} {address}" for nic, address in [*others, *lasting]], "")


def ways() -> Seen:
    """Every route: interface, destination, gateway, mask; of IPv6 those to elsewhere."""
    found = [line.split() for line in lines_of("/proc/net/route")]
    return {f"{row[0]} {row[1]} {row[2]} {row[7]}": "" for row in found} | {f"{at} {place}": "" for place, at in routes6()}


def mounts() -> Seen:
    """What is mounted where our caller is: our own mounts are private."""
    found = [line.split() for line in lines_of(f"{CALLER}/mountinfo")]
    return {row[4]: row[-2] for row in found if not row[4].startswith(("/run/user/", "/run/credentials/"))}


def said_by(program: str, *words: str) -> Seen | None:
    """How often each line was said, counters and comments aside; None where the program is not installed."""
    if not shutil.which(program):
        return None
    said = [re.sub(r" \[\d+:\d+\]$|^#.*", "", line) for line in ask(program, *words, default="").splitlines()]
    return {line: str(count) for line, count in collections.Counter(said).items()}


def listening() -> Seen:
    """Who listens where, by TCP."""
    found = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN and each.pid and each.laddr]
    return {f"{each.laddr.ip}:{each.laddr.port}": psutil.Process(each.pid).name() for each in found if each.laddr}


# files of /etc that programs renew by themselves
RENEWED = re.compile(r"/etc/(ld\.so\.cache|resolv\.conf|mtab|adjtime|\.pwd\.lock|(passwd|shadow|group|gshadow|subuid|subgid)-)$")
TOPS = ("/", "/var/lib", "/var/log", "/var/cache", "/var/spool")
KERNEL = [f"proc/sys/net/ipv6/conf/*/{name}" for name in ("forwarding", "accept_ra", "disable_ipv6")]

# what a machine has, and how that is seen
LOOKS: dict[str, Callable[[], Seen | None]] = {
    "packages":   package_states,
    "users":      lambda: {line.partition(":")[0]: line for line in lines_of("/etc/passwd")},
    "groups":     lambda: {line.partition(":")[0]: line for line in lines_of("/etc/group")},
    "files":      lambda: {str(path): file_state(path) for path in Path("/etc").rglob("*") if not RENEWED.search(str(path))},
    "folders":    lambda: {str(path): "" for top in TOPS for path in Path(top).glob("*") if path != MACHINE},
    "interfaces": lambda: contents("sys/class/net/*/flags"),
    "addresses":  addresses,
    "routes":     ways,
    "nftables":   lambda: said_by("nft", "--stateless", "list", "ruleset"),
    "iptables":   lambda: said_by("iptables-legacy-save"),
    "ip6tables":  lambda: said_by("ip6tables-legacy-save"),
    "namespaces": lambda: {path.name: "" for path in Path(f"{CALLER}/root/run/netns").glob("*")},
    "mounts":     mounts,
    "disks":      lambda: contents("sys/block/loop*/loop/backing_file"),
    "modules":    lambda: {path.name: "" for path in Path("/sys/module").glob("openvswitch")},
    "parameters": lambda: contents("proc/sys/net/ipv4/ip_forward", *KERNEL),
    "merging":    lambda: contents("sys/kernel/mm/ksm/run"),
    "ports":      listening,
    "processes":  lambda: {f"process {each.pid}": cloud for each in psutil.process_iter() if (cloud := cloud_of(each.pid))},
}  # fmt: skip
OF_PACKAGES = ("packages", "users", "groups", "files", "folders")  # what packages bring


def look_at_machine(names: Sequence[str] = tuple(LOOKS)) -> dict[str, Seen | None]:
    """What LOOKS shows now."""
    return {name: LOOKS[name]() for name in names}


def keep_look(cfg: Settings, before: dict[str, Seen | None], made: list[Path]) -> None:
    """For uninstall: how the machine was before the first command of all, and that DIR has a cloud, made with these folders."""
    if not MACHINE.exists():
        do("mkdir", "--mode=700", "--parents", MACHINE)
    if not BEFORE.exists():
        change(f"# note in {BEFORE} how this machine is", lambda: put_file(BEFORE, json.dumps(before), 0o600, ROOT))
    for folder in reversed(made):
        record("rmdir", folder, lasting=True, path=UNDOES)
    if str(cfg.DIR) not in (known := kept(CLOUDS)):
        write_file(CLOUDS, json.dumps({**known, str(cfg.DIR): ""}), 0o600)


def other_folders(cfg: Settings) -> list[str]:
    """Where other clouds of this machine are."""
    return [folder for folder in kept(CLOUDS) if folder != str(cfg.DIR) and Path(folder, "state/tree.json").exists()]


def note_brought() -> None:
    """Packages have come, or some of them: with what. Now there may be programs that show what was not seen before."""

    def note() -> None:
        was, now, brought, before = kept(INSTALLING), look_at_machine(OF_PACKAGES), kept(BROUGHT), kept(BEFORE)
        new = {what: sorted((now[what] or {}).keys() - was[what]) for what in OF_PACKAGES}
        ours = {*brought.get("packages", ()), *re.findall(r"^(\S+) - <", text_of(COMING), re.M)}  # -: it was not there
        if {*new["packages"]} - ours:  # somebody else's came meanwhile: whose files and users these are cannot be told
            new = {what: [] for what in OF_PACKAGES}
        if (dpkgs := Path("/var/log/dpkg.log")).exists():  # a call that was cut off: what is younger is not of packages
            for what in ("files", "folders"):
                new[what] = [name for name in new[what] if Path(name).lstat().st_ctime <= dpkgs.stat().st_mtime + 1]
        for what in ("users", "groups"):  # no people
            new[what] = [name for name in new[what] if int((now[what] or {})[name].split(":")[2]) < 1000]
        brought = {what: sorted({*brought.get(what, ()), *new[what]}) for what in OF_PACKAGES}
        brought["packages"] = sorted(ours & (now["packages"] or {}).keys())  # others may be the user's one day
        put_file(BROUGHT, json.dumps(brought), 0o600, ROOT)
        unseen = [what for what in LOOKS if before.get(what) is None]
        put_file(BEFORE, json.dumps({**before, **look_at_machine(unseen)}), 0o600, ROOT)

    change(f"# note in {BROUGHT} what comes with these packages", note)


def differences(before: Mapping[str, Seen | None], now: Mapping[str, Seen | None]) -> list[dict[str, Any]]:
    """What is not as it was, a row each."""
    # a parameter comes and goes with its interface, which is told
    both = [(what, was, seen) for what, was in before.items() if was is not None and (seen := now.get(what)) is not None]
    return [
        {"what": what, "which": name, "before": was.get(name), "now": seen.get(name)}
        for what, was, seen in both
        for name in sorted(was.keys() & seen.keys() if what == "parameters" else was.keys() | seen.keys())
        if was.get(name) != seen.get(name)
    ]


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
        for taken in (cfg.DIR.resolve(), HOME, *(Path(machine) for machine, _ in PRIVATE_FOLDERS)):
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
    inside = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else ask(*asked, default="").split()
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
    more = (*here["only_with"].items(), *here.get("more", {}).items())
    asked = [names for setting, names in more if asked_for(cfg, setting)]
    return {name for names in (here["packages"], *asked) for name in names}


def check_machine(cfg: Settings) -> None:
    """Memory, disk, ports, distribution: everything that would end a run half-way, told before it begins."""
    distribution()
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


def holder(tap: str) -> str:
    """Whose it is, where it is a program's."""
    for file in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with contextlib.suppress(OSError, psutil.Error):  # it has ended
            if f"iff:\t{tap}\n" in file.read_text():
                return f" (of {psutil.Process(int(file.parts[-3])).name()}, pid {file.parts[-3]})"
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
        said = ask(*probe, ok=(0, 1), default="a guest that needs a tenth of a second has not ended after five")
        refuse_if(said != "it ran", f"LIBVIRT_TYPE=kvm: /dev/kvm is there but does not work ({said})", "use qemu")
    if kind == "lxc" and not has_cgroup2():
        known, why = text_of("/proc/cgroups"), f"no control groups {', '.join(CONTROLLERS)}, and libvirt puts containers there"
        there = all(re.search(rf"^{name}\t[1-9]", known, re.M) for name in CONTROLLERS)
        refuse_if(not there, f"LIBVIRT_TYPE=lxc: {why}", "use qemu")


def check_ports(cfg: Settings) -> None:
    """Every port that a service will listen on is free."""
    places = " ".join(render(f"{row.answers} {row.command}", cfg) for row in rows(cfg, tuple(SERVICES.values())))
    wanted = {int(port) for port in re.findall(r":(\d+)", places)} | {PATHS["RABBIT_DIST_PORT"], PATHS["EPMD_PORT"]}
    wanted |= set(CONSOLE_PORTS if cfg.CONSOLES else ())
    for connection in sorted(psutil.net_connections("tcp"), key=lambda each: getattr(each.laddr, "port", 0)):
        port = connection.laddr.port if connection.laddr else 0
        if connection.status == psutil.CONN_LISTEN and port in wanted:
            name = psutil.Process(connection.pid).name() if connection.pid else "a program that cannot be seen"
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

# SOURCE looks like                                              and is (conf/packages.toml: what that needs)
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
    if needed := distribution()["sources"].get(source.kind):
        install_packages(set(needed))
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
        do("git", "clone", "--quiet", "--depth=1", *name, "--", url, fresh, **more)
        if commit:
            do("git", "-C", fresh, "fetch", "--quiet", "--depth=1", "origin", ref, **more)
            do("git", "-C", fresh, "checkout", "--quiet", "--detach", ref)
    elif kind == "bzr":
        do("brz", "branch", "--quiet", "--", url, fresh, **more)
    elif kind == "folder":
        refuse_if(cfg.DIR.resolve().is_relative_to(url), f"SOURCE {url}: {cfg.DIR} is inside of it", "name a DIR elsewhere")
        do("cp", "--archive", "--reflink=auto", "--no-target-directory", url, fresh)
        if (fresh / ".git").is_file():  # of a linked work tree: what is committed here would change that one
            remove(fresh / ".git")
    else:
        make_folder(fresh)
        do("tar", "--extract", "--no-same-owner", "--file", url or released(ref), "--directory", fresh)
        if len(inside := [fresh / "nova-*"] if DRY_RUN else list(fresh.iterdir())) == 1:
            return inside[0]
    return fresh


def released(version: str) -> Path:
    """The release from PyPI: the one of uv.lock, or another as the user's own index names it, hash included."""
    file = locked("nova", r"\.tar\.gz$")
    if version:
        indexes = [os.environ.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")]
        page = next(filter(None, [*indexes, "https://pypi.org/simple"])).rstrip("/") + "/nova/"
        link = rf'href="([^"#]*/nova-{re.escape(version)}\.tar\.gz)#(sha256=\w+)"'
        if not (found := re.search(link, download(page).decode())):
            raise Failure(f"SOURCE pypi:nova=={version}: {page} names no such release", code=2)
        file = {"url": urllib.parse.urljoin(page, found[1]), "hash": found[2].replace("=", ":")}
    packed = STATE / "cache/nova.tar.gz"
    make_folder(packed.parent)
    change(f"curl --output {packed} {file['url']}", lambda: packed.write_bytes(download(file["url"], file["hash"])))
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
OWN = {Path(name).parts[0] for name, _ in FOLDERS} | {path.name for _, path, *_ in CONFIG_FILES if path.parent == HOME}
# {"whole": bool, "top": names in DIR, "files": {path in DIR: SHA-256 as branched}, "commits": git's as branched}
TREE = STATE / "tree.json"


def tree() -> dict[str, Any]:
    """What branch put into DIR."""
    return kept(TREE) or {"whole": False, "top": [], "files": {}}


def put_tree(fresh: Path) -> None:
    """Replace the tree in DIR by `fresh`, leaving what nova.py keeps beside it, and note what each file was."""
    names = sorted(path.name for path in fresh.iterdir())
    code = [fresh / name for name in names if name not in CONTROLLED]
    do("chmod", "--recursive", "go+rX", *code)  # services, which are not its owner, read it
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
    if not tree()["whole"]:
        branch(cfg)
    in_parallel(lambda: install_packages(packages(cfg)), lambda: install_openstack(cfg))
    private_libvirt(cfg)
    make_users()
    link_modules(cfg)
    link_plugins()
    use_elsewhere(cfg)
    make_folders(cfg)
    write_config(cfg)
    images = (functools.partial(make_image, *row) for row in rows(cfg, BUILDERS))
    in_parallel(lambda: make_databases(cfg), *images, lambda: unpack_novnc(cfg), lambda: fetch_image(cfg))


APT_CONFIG = STATE / "cache/apt/conf"
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}


def install_packages(names: set[str]) -> None:
    """One apt transaction for what is missing; services that packages bring do not start, now or at the next boot."""
    if not APT_CONFIG.exists():  # apt's lists and downloads are in DIR, the lists as the machine has them to begin with
        do("mkdir", "--parents", APT_CONFIG.parent / "archives/partial")
        do("cp", "--archive", "--reflink=auto", "--no-target-directory", "/var/lib/apt/lists", APT_CONFIG.parent / "lists")
    write_file(APT_CONFIG, string.Template((HERE / "conf/apt.conf.tmpl").read_text()).substitute(PATHS, COMING=COMING))
    missing = sorted(names - installed(package_states()))
    if not missing and not INSTALLING.exists():
        return
    apt, options = ("apt-get", "--config-file", APT_CONFIG, "-qq"), ("-y", "--no-install-recommends", "--no-remove")
    with step(f"Install {len(missing)} packages and what they need"):
        wait_for("dpkg (another program is installing packages)", dpkg_is_free, 300)
        with no_services():
            do("dpkg", "--configure", "-a", env=QUIET)  # what a call that was cut off left half-way
            do(*apt, "update", hint=NETWORK)
            do(*apt, "install", *options, *missing, env=QUIET, hint=NETWORK)  # COMING is told what comes before it does


def installed(states: Seen) -> set[str]:
    """The names of the packages that are there."""
    return {name for name, state in states.items() if state == "installed"}


def dpkg_is_free() -> bool:
    """Raises BlockingIOError while somebody else has dpkg's lock."""
    with open("/var/lib/dpkg/lock-frontend", "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


POLICY = Path("/usr/sbin/policy-rc.d")
NO_SERVICES = "#!/bin/sh\n# written by nova.py while it installs packages\nexit 101\n"


@contextlib.contextmanager
def no_services() -> Iterator[None]:
    """Packages start their services and enable them for the next boot; the cloud starts its own, so neither here."""
    if not INSTALLING.exists():
        seen = json.dumps(look_at_machine(OF_PACKAGES))
        change(f"# note in {INSTALLING} how this machine is", lambda: put_file(INSTALLING, seen, 0o600, ROOT))
    if not POLICY.exists():
        write_file(POLICY, NO_SERVICES, 0o755)
    try:
        yield
    finally:
        remove_policy()
        note_brought()
    if DRY_RUN:
        print("# disable each service that these packages bring:  rm /etc/systemd/system/*.*/UNIT")
        return print(f"rm --recursive --force {POLICY}\nrm --force {INSTALLING} {COMING}")
    new = {name for name in kept(BROUGHT)["packages"] if kept(INSTALLING)["packages"].get(name) != "installed"}
    files = ask("dpkg-query", "--listfiles", *sorted(new)) if new else ""
    units = re.findall(r"/systemd/system/([^/\s]+)$", files, re.M)
    for unit in units:  # without the link it counts as disabled by the owner; Debian 13's helper goes round and round in Also=
        remove(*Path("/etc/systemd/system").glob(f"*.*/{unit}"))
    for script in re.findall(r"^/etc/init\.d/([^/\s]+)$", files, re.M):
        if f"{script}.service" not in units:  # slapd has none
            do("update-rc.d", script, "disable")
    do("rm", "--force", INSTALLING, COMING)


def remove_policy() -> None:
    """The file that keeps services from starting, when it is ours."""
    if text_of(POLICY) == NO_SERVICES:
        remove(POLICY)


def install_openstack(cfg: Settings) -> None:
    """OpenStack's environment from the lock file, with the tree in DIR as its nova; then what settings add to it."""
    files = (HERE / "uv.lock", *(HOME / name for name in ("setup.cfg", "pyproject.toml", "requirements.txt")))
    key = "".join(digest(path) for path in files if path.exists())
    make_once(ENV / "made-from", key, make_environment)
    for group, place in rows(cfg, GROUPS):
        make_once(ENV / f"made-from-{group}", key, functools.partial(add_group, group, place))


def make_environment() -> None:
    """All of it, anew; nova by its path (compat): setuptools' own finder costs every start of this Python 10 ms."""
    with step("Install OpenStack's environment"):
        empty_environment(ENV)
        install_group("cloud", ENV, "--no-emit-package", "nova")
        editable = ("--no-build-isolation", "--no-deps", "--config-settings", "editable_mode=compat", "--editable", HOME)
        uv("pip", "install", "--python", ENV, *editable, env={"PBR_VERSION": tree_version()})
        other = f"this tree wants other libraries than uv.lock has: branch another version, or edit {HOME}/requirements.txt"
        uv("pip", "check", "--python", ENV, hint=other)
    with step("Compile it"):
        compile_python(site_packages(ENV), HOME / "nova")


def empty_environment(place: Path) -> None:
    """One with the distribution's python3, for which its modules (MODULES) are built, and what builds what has no wheel."""
    uv("venv", "--clear", "--relocatable", "--python", "/usr/bin/python3", place)
    install_group("cloud-build", place)


def tree_version() -> str:
    """For pbr, which would ask git, as root; a shallow clone has no tag: then it is the version of uv.lock."""
    if found := re.search(r"^Version: (\S+)$", text_of(HOME / "PKG-INFO"), re.M):
        return found[1]
    tags = git("describe", "--tags", "--abbrev=0", default="") if (HOME / ".git").exists() else []
    return tags[0] if tags else locked("nova", r"\.tar\.gz$")["url"].rpartition("nova-")[2].removesuffix(".tar.gz")


def add_group(group: str, place: Path) -> None:
    """What only a setting asks for, into the environment that is there, or into one of its own."""
    with step(f"Install OpenStack's environment for {group}"):
        if place != ENV:
            empty_environment(place)
        install_group(group, place)
        compile_python(site_packages(place))


def install_group(group: str, place: Path, *but: str) -> None:
    """A group of pyproject.toml, as uv.lock has it."""
    wanted = STATE / "cache/cloud.txt"
    uv("export", "--frozen", "--only-group", group, *but, "--output-file", wanted)
    # --no-deps: the lock has them all, also where pyproject.toml corrects what a package says of itself.
    uv("pip", "install", "--python", place, "--no-build-isolation", "--no-deps", "--require-hashes", "--requirements", wanted)


def uv(*words: object, env: Mapping[str, str] = {}, hint: str = NETWORK) -> None:
    """A call of uv for the cloud's environment."""
    own = {"UV_SYSTEM_CERTS": "1", "UV_CACHE_DIR": str(STATE / "cache/uv")}
    do(TOOL / "uv", "--quiet", "--no-config", *words, cwd=HERE, env={**own, **env}, hint=hint)


def site_packages(place: Path) -> Path:
    """Where an environment's modules are."""
    named = place / "lib" / Path("/usr/bin/python3").resolve().name / "site-packages"
    return next(place.glob("lib/python3*/site-packages"), named)


def compile_python(*folders: Path) -> None:
    """Once for all processes, so that none of them does it at its start; a quarter of it is what none of them imports."""
    unused = "tests|testing|pygments|redis|setuptools|xmlschema|elementpath|authn_context|ofproto|os_ken/services|distutils"
    do(ENV / "bin/python", "-m", "compileall", "-qj2", f"-x/({unused})/", *folders)


def make_once(made_from: Path, key: str, make: Callable[[], None]) -> None:
    """Call `make`, unless what it makes was made from the same before; where it was cut off, it makes all anew."""
    if text_of(made_from) != key:
        remove(made_from)
        make()
        write_file(made_from, key)


def make_users() -> None:
    """The users that own the cloud's processes."""
    for user in (USER, GUEST_USER):
        if not ask("getent", "passwd", user, default=""):
            home = ("--no-create-home", "--home-dir", "/nonexistent")
            record("userdel", user, lasting=True, path=UNDOES)
            do("useradd", "--system", "--user-group", *home, "--shell", "/usr/sbin/nologin", user)
    if not ask("getent", "group", group := PRIVSEP.partition(":")[2], default=""):
        record("groupdel", group, lasting=True, path=UNDOES)
        do("groupadd", "--system", group)


def link_modules(cfg: Settings) -> None:
    """OpenStack's environment sees the files of MODULES, and nothing else of the distribution's Python."""
    place = STATE / "python3"
    link(place, *(f"python3/dist-packages/{files}" for _, files in rows(cfg, MODULES)))
    write_file(site_packages(ENV) / "distribution.pth", f"{place}\n")


def link_plugins() -> None:
    """RabbitMQ sees one plugin, itself, and in it each module of Erlang's.

    Otherwise it looks for each of a thousand modules in one of ninety folders after the other, 42,000 times in vain (3.10
    with Erlang 25): more than half of its start. It would read its plugins as well, none of which is used.
    """
    place, rabbit = STATE / "rabbit-plugins/rabbit", "rabbitmq/lib/rabbitmq_server-*/plugins"
    remove(place.parent)
    link(place, f"{rabbit}/rabbit-[0-9]*/priv")
    link(place / "ebin", "erlang/lib/*/ebin/*.beam", f"{rabbit}/*/ebin/*.beam", f"{rabbit}/rabbit-[0-9]*/ebin/rabbit.app")


def link(place: Path, *patterns: str) -> None:
    """A new folder of links to what `patterns` name in /usr/lib."""

    def each() -> None:
        for file in (file for pattern in patterns for file in Path("/usr/lib").glob(pattern)):
            (place / file.name).symlink_to(file)

    remove(place)
    make_folder(place)
    named = " ".join(f"/usr/lib/{pattern}" for pattern in patterns)
    change(f"ln --symbolic --target-directory={place} {named}", each)


def make_folders(cfg: Settings) -> None:
    """Folders, the settings for later, and passwords: what is there stays as it is."""
    for name, owner in rows(cfg, FOLDERS):
        own_folder(HOME / name, owner, {USER: 0o700, PRIVSEP: 0o711}.get(owner, 0o755))
    plain = {k: v for k, v in asdict(cfg).items() if k not in (*SECRETS, "DIR")}
    write_file(STATE / "settings.json", json.dumps(plain, indent=1), 0o600)  # IMAGE's URL may hold a token
    known = passwords(STATE)
    for name in SECRETS:
        if DRY_RUN and not (getattr(cfg, name) or known.get(name)):
            print(f"{name}=$(openssl rand -hex 16)")
        known[name] = getattr(cfg, name) or known.get(name) or (f"@@{name}" if DRY_RUN else secrets.token_urlsafe(24))
    write_file(STATE / "passwords.json", json.dumps(known, indent=1), 0o600)


def own_folder(path: Path, owner: str, mode: int) -> None:
    """A folder that is this user's."""

    def make() -> None:
        path.mkdir(parents=True, exist_ok=True)
        give(path, owner)
        path.chmod(mode)

    change(f"install --directory --mode={mode:o} {owned_by(owner)} {path}", make)


def use_elsewhere(cfg: Settings) -> None:
    """A folder of our own below INSTANCES_PATH and LOCK_PATH is where the cloud looks, whoever may enter the folders above it."""
    for name, folder in ELSEWHERE:
        if value := getattr(cfg, name):
            own, place = Path(value).resolve() / f"{'-'.join(cfg.DIR.parts[1:])}-{Path(folder).name}", HOME / folder
            for missing in [path for path in own.parents if not path.exists()][::-1]:
                record("rmdir", missing, lasting=True)
            record("rm", "--recursive", "--force", own, lasting=True)
            make_folder(own)
            make_folder(place)
            mount("--bind", own, place)


def write_config(cfg: Settings) -> None:
    """Every service's configuration from its template."""
    for template, path, mode, owner in rows(cfg, CONFIG_FILES):
        write_file(path, render((HERE / template).read_text(), cfg), mode, owner)
    for name in ("keep", "ksm"):
        write_file(CONF / name, (HERE / "conf" / name).read_bytes(), 0o755)
    if not cfg.USE_MYSQL:
        # The SQLAlchemy plugin of DATABASE_URLS becomes a package of OpenStack's environment; why: conf/sqlite.
        for site in {site_packages(place) for place in (ENV, *(place for _, place in rows(cfg, GROUPS)))}:
            for name in ("nova_py_sqlite.py", "nova_py_sqlite-1.dist-info/entry_points.txt"):
                make_folder((site / name).parent)
                write_file(site / name, (HERE / "conf/sqlite" / name).read_bytes())
    if DRY_RUN:
        print(f". {HOME}/novarc  # for what openstack asks for below")
    for name in ("fernet/0", "fernet/1", "credential/0", "credential/1"):
        if not (path := STATE / "keystone" / name).exists():
            key = b"@@(openssl rand -base64 32 | tr +/ -_)" if DRY_RUN else urlsafe_b64encode(secrets.token_bytes(32))
            write_file(path, key, 0o600, USER)


WRITTEN_INTO_DATABASES = (
    *("HOSTNAME", "HOST_IP", "ADMIN_PASSWORD", "SERVICE_PASSWORD", "DEMO_PASSWORD", "EC2_ACCESS_KEY", "EC2_SECRET_KEY", "CELL"),
    "QUOTA_GIGABYTES",  # cinder keeps its default quotas there
)


def make_databases(cfg: Settings) -> None:
    """Filled databases, made once and copied by every run: their content depends on what `key` is made of alone."""
    chosen = [values(cfg)[name] for name in WRITTEN_INTO_DATABASES]
    files = [digest(HERE / name) for name in ("uv.lock", "conf/map-host.py")]
    tables = rows(cfg, DATABASES, ENDPOINTS, ACCOUNTS)
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
        with started(cfg, SERVICES["preload"]), started(cfg, SERVICES["mysql"], "--innodb-flush-log-at-trx-commit=0"):
            in_parallel(*(functools.partial(fill_database, cfg, *row) for row in rows(cfg, DATABASES)))
            with started(cfg, SERVICES["keystone"]):
                register_services(cfg)
                create_accounts(cfg)
    move(place, kept)


@contextlib.contextmanager
def started(cfg: Settings, service: Service, *more: str) -> Iterator[None]:
    """A service for the length of a with, without a window."""
    out = STATE / f"log/{service.window}-install.log"
    user = f"setpriv --reuid={service.user} --regid={service.user} --init-groups"
    line = f". {CONF}/window; exec {user} {render(service.command, cfg)} {' '.join(more)}"
    options: Any = dict(_in="", _out=str(out), _err_to_out=True, _tty_out=False, _bg=True, _bg_exc=False)
    words = shlex.join(["bash", "-c", line])
    process = change(f"{words} >{out} 2>&1 & {service.window}=$!", lambda: command(["bash", "-c", line], **options))

    def end() -> None:
        with contextlib.suppress(ProcessLookupError, sh.ErrorReturnCode):
            process.terminate()
            process.wait()

    try:
        wait_for(service.window, render(service.answers, cfg), 60)
        yield
    finally:
        change(f"kill ${service.window}; wait ${service.window} || true", end)


def register_services(cfg: Settings) -> None:
    """keystone's catalog: each service's user and its address."""
    project, known = create(cfg, "identity", "project", "service", domain_id="default"), values(cfg)
    roles = [find(cfg, "identity", "role", name) for name in ("admin", "service")]
    for name, kind, template in rows(cfg, ENDPOINTS):
        always = {"ignore_lockout_failure_attempts": True}  # whoever guesses (conf/keystone.conf.tmpl) does not stop the cloud
        secret, url = known["SERVICE_PASSWORD"], render(template, cfg)
        user = create(cfg, "identity", "user", name, domain_id="default", password=secret, options=always)
        for role in roles:
            add_role(cfg, role, project, "user", user)
        line = f"openstack service create --name {name} {kind}"
        service = named(name, api(cfg, line, "identity.create_service", name=name, type=kind))
        for interface in ("public", "internal"):
            line = f"openstack endpoint create --region RegionOne {service.name} {interface} {shlex.quote(url)}"
            where = dict(service_id=service.id, interface=interface, url=url, region_id="RegionOne")
            api(cfg, line, "identity.create_endpoint", **where)
    keys = json.dumps({"access": known["EC2_ACCESS_KEY"], "secret": known["EC2_SECRET_KEY"]})
    line = "openstack credential create --type ec2 --project admin admin " + json.dumps(keys)
    make = lambda: cloud(cfg).identity.create_credential(
        type="ec2", blob=keys, user_id=cloud(cfg).current_user_id, project_id=cloud(cfg).current_project_id
    )
    change(line, make)
    if cfg.DIRECTORY:
        create(cfg, "identity", "domain", "ldap")


def create_accounts(cfg: Settings) -> None:
    """ACCOUNTS, and the role by which swift lets its holder into every project's containers."""
    default: dict[str, Any] = {"domain_id": "default"}
    kinds = {name: find(cfg, "identity", "role", name) for name in ("admin", "member", "reader")}
    places = {name: create(cfg, "identity", "project", name, **default) for name in ("demo", "alt_demo")}
    users = {"admin": find(cfg, "identity", "user", "admin")}
    for name, place, kind in ACCOUNTS:
        if name not in users:
            password = values(cfg)["DEMO_PASSWORD"]
            users[name] = create(cfg, "identity", "user", name, password=password, **default)
        if place == "system":
            line = f"openstack role add --user {name} --system all {kind}"
            api(cfg, line, "identity.assign_system_role_to_user", users[name], kinds[kind], "all")
        else:
            add_role(cfg, kinds[kind], places[place], "user", users[name])
    if cfg.USE_SWIFT:
        create(cfg, "identity", "role", "ResellerAdmin")
    cloud.cache_clear()  # its token names the catalog as it was


def add_role(cfg: Settings, role: Any, project: Any, kind: str, who: Any) -> None:
    """A user or a group has a role in a project."""
    line = f"openstack role add --{kind} {who.name} --project {project.name} {role.name}"
    api(cfg, line, f"identity.assign_project_role_to_{kind}", project, who, role)


def fill_database(cfg: Settings, names: tuple[str, ...], commands: tuple[str, ...]) -> None:
    """Create the databases and run the commands that make their tables."""
    # keystone-manage bootstrap reads these: a password has no place in argv.
    urls = {f"OS_BOOTSTRAP_{kind}_URL": f"http://{cfg.HOST_IP}:5000/v3" for kind in ("PUBLIC", "INTERNAL")}
    env = {**urls, "OS_BOOTSTRAP_REGION_ID": "RegionOne", "OS_BOOTSTRAP_PASSWORD": values(cfg)["ADMIN_PASSWORD"]}
    env |= {"PATH": f"{ENV}/bin:{PLAIN['PATH']}"}
    env |= {"OS_NOVA_DISABLE_EVENTLET_PATCHING": "1"}  # or nova-manage wants eventlet, which preload has not
    for name in names if cfg.USE_MYSQL else {"neutron"} & {*names}:  # SQLite makes its files by itself
        do("mariadb", "--no-defaults", f"--socket={STATE}/mysql/sock", text=f"CREATE DATABASE {name};")
    for command in commands:
        program, *arguments = shlex.split(render(command, cfg))
        do(ENV / "bin" / program, *arguments, user=USER, env=env, cwd=STATE)


def make_image(name: str, builder: str, folder: str) -> None:
    """The three parts of an image (BUILDERS), from the distribution's packages."""
    program, place, apt = HERE / builder, HOME / folder, {"APT_CONFIG": str(APT_CONFIG)}

    def build() -> None:
        with step(f"Build the image {name}"):
            do(sys.executable, program, place, distribution()["kernel"], env=apt, hint=NETWORK)

    key = "".join(digest(path) for path in sorted(program.parent.rglob("*")) if path.is_file())
    make_once(place / "made-from", key + platform.freedesktop_os_release()["VERSION_ID"], build)


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
            options = ("-qq", "--config-file", APT_CONFIG, "-o", "APT::Sandbox::User=root")
            do("apt-get", "download", *options, "novnc", cwd=page, hint=NETWORK)
            do("dpkg-deb", "--extract", *([*page.glob("*.deb")] or [page / "novnc.deb"]), page)

    make_once(page / "made-from", platform.freedesktop_os_release()["VERSION_ID"], unpack)


# ---- run ----


def run(cfg: Settings, yes: str = "") -> None:
    """Run a cloud for as long as its session lasts, then take it down."""
    with only_one("run") if not DRY_RUN else contextlib.nullcontext():
        run_detached(cfg, yes)
    if DRY_RUN:
        return print(f"screen -x {cfg.SCREEN_NAME} -p test\n# and when the session has ended: terminate, clean")
    BARS.stop()  # the terminal is screen's now
    with contextlib.suppress(sh.ErrorReturnCode):
        sh.Command("screen")("-S", f"{session(cfg)}.{cfg.SCREEN_NAME}", "-p", "test", "-x", _fg=True)
    if session(cfg):
        say(f"The cloud stays. To come back: sudo screen -x {cfg.SCREEN_NAME}")
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
    link_plugins()
    use_elsewhere(cfg)
    make_folders(cfg)
    write_config(cfg)
    start_session(cfg)
    empty(ENDED)
    create_switch()
    use_volumes(cfg)
    start_servers(cfg)
    use_directory(cfg)
    create_bridges(cfg)
    start_control(cfg)
    route_private(cfg)
    ran = servers_that_ran(cfg)
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
            do(ENV / "bin/python", "-", *UNIT_TESTS[cfg.TEST], user=USER, text=script, env=env, cwd=HOME, hint=red)


def refuse_if_running(cfg: Settings) -> None:
    """nova.sh's refusal: a session of this name is there. One that a run of ours left half-made is no reason."""
    name, found, ours = cfg.SCREEN_NAME, session(cfg), processes()
    if not ours and other_cloud():
        check_ports(cfg)  # says whose they are
    if ours and (STATE / "run/up").exists():
        name = settings_of_run(str(HOME)).SCREEN_NAME
        end = "stop, which keeps it; or terminate, then clean"
        way = f"attach to it with: sudo screen -x {name}\n  end it with: sudo python3 nova.py {end}"
        raise Failure(f"screen named '{name}' already exists!", way)
    if found and found not in [process.pid for process in ours]:
        whose = cloud_of(found).partition(" ")[2] or "another program"
        raise Failure(f"screen named '{name}' already exists, of {whose}!", "choose another SCREEN_NAME, or end that one")


def end_what_was_left(cfg: Settings) -> None:
    """A run that was cut off, or a cloud that was cleaned but not scrubbed: take the rest down first."""
    if processes() or ((path := STATE / "record").exists() and path.stat().st_size):
        with step("Take down what an earlier run left"):
            wait_for("dpkg (it is at work)", dpkg_is_free, 300)  # an install that was cut off: not in the middle
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
    domains = [path.stem for path in STATE.glob("libvirt/etc/*/instance-*.xml")]
    if not domains and not asked_for(cfg, "VOLUMES_SIZE"):
        return {}  # the usual case, and a server's start is not worth it
    there = not cfg.USE_MYSQL or answers(f"{STATE}/mysql/sock")
    if DRY_RUN and not there:
        return {"instances": domains}
    try:
        with contextlib.nullcontext() if there else started(cfg, SERVICES["mysql"]):
            return {what: names_in(cfg, database, those) for what, database, those, _ in rows(cfg, THINGS)}
    except (Failure, OSError, sqlite3.Error) as failure:
        log.info("the databases do not tell: %s", failure)
        return {"instances": domains}


def names_in(cfg: Settings, database: str, those: str) -> list[str]:
    """The names in a database of THINGS."""
    query = f"SELECT display_name FROM {those}"  # noqa: S608 (a row of ours)
    if not cfg.USE_MYSQL:
        place = f"file:{STATE}/databases/sqlite/{database}?mode=ro"
        with contextlib.closing(sqlite3.connect(place, uri=True, timeout=10)) as file:
            return [str(row[0]) for row in file.execute(query)]
    client = ("mariadb", "--no-defaults", f"--socket={STATE}/mysql/sock", "--batch", "--skip-column-names")
    return ask(*client, database, "--execute", query).splitlines()


def empty(names: tuple[str, ...]) -> None:
    """Delete what is in folders of HOME, and files."""
    remove(*(path for name in names for path in ((HOME / name).glob("*") if (HOME / name).is_dir() else [HOME / name])))


def create_switch(schema: str = "openvswitch/vswitch", name: str = "conf") -> None:
    """An empty database of Open vSwitch, or of OVN."""
    do("ovsdb-tool", "create", STATE / f"ovs/{name}.db", f"/usr/share/{schema}.ovsschema", user=USER)


def empty_databases(cfg: Settings, copied: bool = False) -> None:
    """Every run is a fresh cloud: databases as install made them, or as the first such run did; no instances, no messages."""
    with step("Empty the databases"):
        empty(EMPTIED)
        create_switch()
        create_switch("ovn/ovn-sb", "ovnsb")
        if copied:
            copy_new(KEPT_NEW, STATE)
        else:
            do(*COPY, kept_databases(cfg), STATE / "databases")
            create_switch("ovn/ovn-nb", "ovnnb")


COPY = ("cp", "--archive", "--reflink=auto", "--sparse=always", "--no-target-directory")
KEPT_NEW, MADE_NEW = STATE / "cache/new", STATE / "cache/new.made-from"


def key_of_new(cfg: Settings) -> str:
    """What a new cloud depends on; "" where it is not kept: SQLite's writers cannot be held, a directory may change."""
    if not cfg.USE_MYSQL or cfg.DIRECTORY:
        return ""
    image = (seen.st_size, seen.st_mtime_ns) if cfg.IMAGE and (seen := stat_of(image_file(cfg))) else ()
    made_from = (kept_databases(cfg).with_suffix(".made-from"), HOME / "images/made-from")
    ours = (HERE / "nova.py", *(HERE / row[0] for row in rows(cfg, CONFIG_FILES)))
    theirs = ("/etc/resolv.conf", "/usr/share/ovn/ovn-nb.ovsschema")  # neutron tells the instances these name servers
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
        do(*COPY, old / name, new / name)


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
        do("mount", "-o", "loop,discard,nosuid,nodev", disk, share)
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
        if cfg.MERGES and not DRY_RUN:
            ctypes.CDLL(None).prctl(67, 1, 0, 0, 0)  # PR_SET_MEMORY_MERGE: all that the session will start has it from us
        shell = ("bash", "--rcfile", CONF / "test", "-i")
        do("screen", "-c", CONF / "screenrc", "-d", "-m", "-S", cfg.SCREEN_NAME, "-t", "test", *shell)
        wait_for("screen", lambda: session(cfg), 10)
        if cfg.SCREEN_STATUS:
            to_screen(cfg, "hardstatus", "alwayslastline", "%-w%{= BW}%50>%n* %t%{-}%+w%< %= %H")
        open_windows(cfg, PRELOAD)


def start_servers(cfg: Settings) -> None:
    """What OpenStack stands on."""
    if not DRY_RUN:  # the APIs' client takes a second to import: beside what is waited for
        threading.Thread(target=importlib.import_module, args=("openstack.connection",), daemon=True).start()
    with step("Start MariaDB, RabbitMQ, Open vSwitch, OVN and libvirt"):
        if cfg.LIBVIRT_TYPE == "lxc":
            record_groups()
        start_services(cfg, SERVERS)


def start_services(cfg: Settings, table: tuple[Service, ...], *before: Service) -> None:
    """All at once, until those `before` and they answer; but for rabbit and the conductor: whoever needs these two waits."""
    open_windows(cfg, rows(cfg, table))
    wait_for_services(cfg, (*before, *(service for service in table if service.window not in ("rabbit", "conductor"))))


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
        start_services(cfg, CONTROL, *PRELOAD)
        # keystone reads its rules when they are first needed; where two ask at once, it refuses one (seen with 30.0.0).
        those_of(cfg, "identity.services")


def start_workers(cfg: Settings) -> None:
    """What asks the others when it starts."""
    with step("Start scheduler, compute and network agents"):
        open_windows(cfg, rows(cfg, WORKERS))
        wait_for_services(cfg, (SERVICES["conductor"],))
        open_windows(cfg, COMPUTE)
        wait_for_services(cfg, WORKERS)


def create_flavors(cfg: Settings) -> None:
    """nova.sh's sizes."""
    with step("Create flavors"):
        for name, number, ram, disk, cpus in FLAVORS:
            create(cfg, "compute", "flavor", name, id=number, ram=ram, disk=disk, vcpus=cpus)


def create_networks(cfg: Settings) -> None:
    """private, public and the router between them; ping and ssh come in."""
    with step("Create networks"):
        manager = MANAGERS[cfg.NET_MAN]
        outside = dict(provider_network_type="flat", provider_physical_network="public", is_router_external=True)
        outside["is_default"] = True  # where the routers of projects lead that have their network by itself
        public = create(cfg, "network", "network", "public", **outside)
        private = create(cfg, "network", "network", "private", provider_physical_network="fixed", **manager.private)
        create_subnet(cfg, public, cfg.FLOATING_RANGE, -2, is_dhcp_enabled=False)
        inside = [create_subnet(cfg, private, cfg.FIXED_RANGE, -3, is_dhcp_enabled=manager.dhcp)]
        if cfg.USE_IPV6:
            create_subnet(cfg, public, str(ranges_v6(cfg)[1]), -2, is_dhcp_enabled=False)
            by_router = dict(ipv6_ra_mode="slaac", ipv6_address_mode="slaac", is_dhcp_enabled=True)
            inside.append(create_subnet(cfg, private, str(ranges_v6(cfg)[0]), -2, **by_router))
        router = create(cfg, "network", "router", "router", external_gateway_info={"network_id": public.id})
        for subnet in inside:
            line = f"openstack router add subnet router {subnet.id}"
            api(cfg, line, "network.add_interface_to_router", router, subnet_id=subnet.id)
        part = dict(prefixes=[pool_range(cfg)], default_prefix_length=26, is_shared=True, is_default=True)
        create(cfg, "network", "subnet_pool", "shared-default-subnetpool-v4", **part)
        share_private(cfg, private)
        route_private(cfg)
        allow_ping_and_ssh(cfg)


def share_private(cfg: Settings, private: Any) -> None:
    """Let the project demo use `private`, which is the admin's, as DevStack's demo uses its own."""
    if not MANAGERS[cfg.NET_MAN].private.get("is_shared"):
        demo = find(cfg, "identity", "project", "demo")
        line = "openstack network rbac create --type network --action access_as_shared --target-project demo private"
        whose = dict(object_type="network", object_id=private.id, action="access_as_shared", target_project_id=demo.id)
        api(cfg, line, "network.create_rbac_policy", **whose)


def pool_range(cfg: Settings) -> str:
    """One of POOLS that overlaps neither the cloud's ranges nor a route of this machine; the last one if all of them do.

    IPv4 alone: neutron gives such a network's IPv6 subnet no router advertisements, so no instance would get its address.
    """
    in_use = [ipaddress.IPv4Network(cfg.FLOATING_RANGE), ipaddress.IPv4Network(cfg.FIXED_RANGE)]
    in_use += [route for route, interface in routes() if route.prefixlen and interface not in BRIDGES]
    is_free = lambda pool: not any(ipaddress.IPv4Network(pool).overlaps(network) for network in in_use)
    return next(filter(is_free, POOLS), POOLS[-1])


def route_private(cfg: Settings) -> None:
    """This machine knows the way to the instances' IPv6 addresses, which have no translation; it goes with br-ex."""
    if not cfg.USE_IPV6:
        return
    gateways = [each.external_gateway_info or {} for each in those_of(cfg, "network.routers", name="router")[:1]]
    places = [each["ip_address"] for gateway in gateways for each in gateway.get("external_fixed_ips", ())]
    own = [place for place in places if ":" in place]  # none where a user deleted the router, or its way out
    for address in ["ADDRESS-OF-ROUTER"] if DRY_RUN else own:
        do_again("ip", "-6", "route", "replace", ranges_v6(cfg)[0], "via", address, "dev", "br-ex")


def create_subnet(cfg: Settings, network: Any, cidr: str, last: int, **more: object) -> Any:
    """A network's subnet: its first address is the gateway's, instances have the second to the `last`."""
    room = ipaddress.ip_network(cidr)
    pool = dict(start=str(room[2]), end=str(room[last]))
    where = dict(network_id=network.id, ip_version=room.version, cidr=cidr, gateway_ip=str(room[1]))
    name = f"{'ipv6-' * (room.version == 6)}{network.name}-subnet"
    return create(cfg, "network", "subnet", name, allocation_pools=[pool], **where, **more)


def allow_ping_and_ssh(cfg: Settings) -> None:
    """Into every instance whose security group is the project's default one."""
    every, ssh = dict[str, int](), {"port_range_min": 22, "port_range_max": 22}
    allowed = (("IPv4", "icmp", every), ("IPv6", "ipv6-icmp", every), ("IPv4", "tcp", ssh), ("IPv6", "tcp", ssh))

    def make() -> None:
        network, project = cloud(cfg).network, cloud(cfg).current_project_id
        own = dict(security_group_id=next(network.security_groups(name="default", project_id=project)).id, direction="ingress")
        network.create_security_group_rules([{**own, "ether_type": f, "protocol": p, **ports} for f, p, ports in allowed])

    line = "openstack security group rule create --ethertype {} --protocol {}{} default"
    change("\n".join(line.format(f, p, " --dst-port 22" if ports else "") for f, p, ports in allowed), make)


def create_projects(cfg: Settings) -> None:
    """Each group of the directory is a project of the domain ldap, and its members are the project's."""
    if cfg.DIRECTORY:
        with step("Create the projects of the directory's groups"):
            domain, member = find(cfg, "identity", "domain", "ldap"), find(cfg, "identity", "role", "member")
            for group in [Unmade("EACH-GROUP")] if DRY_RUN else those_of(cfg, "identity.groups", domain_id=domain.id):
                project = create(cfg, "identity", "project", group.name, domain_id=domain.id)
                add_role(cfg, member, project, "group", group)


def upload_image(cfg: Settings) -> None:
    """Register ami-tty and debian: kernel, ramdisk, root disk; and IMAGE under its file's name."""
    with step("Upload the image"):
        ids, is_machine = dict[str, str](), cfg.LIBVIRT_TYPE != "lxc"  # of a container no hardware can be asked
        for name, form, file, properties in rows(cfg, IMAGE_PARTS):
            known = {key: ids.get(value, value) for key, value in properties.items() if is_machine or not key.startswith("hw_")}
            path = HOME / "images" / file
            with contextlib.nullcontext(Unmade(str(path))) if DRY_RUN else open(path, "rb") as data:
                around = form if form.startswith("a") else "bare"  # Amazon's three formats are containers as well
                part = dict(disk_format=form, container_format=around, visibility="public", data=data, **known)
                ids[name] = create(cfg, "image", "image", name, **part).id
    if cfg.IMAGE and not asked_for(cfg, "IMAGE=debian"):
        path, called = image_file(cfg), Path(urllib.parse.urlsplit(cfg.IMAGE).path).stem
        kind, size = ("FORMAT", 0) if DRY_RUN else image_format(path)
        with step(f"Upload the image {called} ({kind}, a disk of {size / 2**30:.1f} GiB)"), open(path, "rb") as image:
            own = dict(disk_format=kind, container_format="bare", visibility="public", min_disk=-(-size // 2**30))
            create(cfg, "image", "image", called, data=BARS.wrap_file(image, path.stat().st_size, task_id=AT_WORK.bar), **own)


def wait_for_hosts(cfg: Settings) -> None:
    """Until an instance could be placed and wired."""
    room = "/resource_providers?resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"
    placed = lambda: cloud(cfg).placement.get(room, microversion="1.17").json()["resource_providers"]
    with step("Wait for the compute host"):
        wait_for_services(cfg, COMPUTE)
        wait_for("the compute host's report", lambda: is_compute_up(cfg), 60)
        wait_for("the compute host in placement", placed, 60)
        # Until it has registered, it may take away the namespace of an instance that is quicker (29.0.0, by its code).
        agents = ("ovsdb-client", "dump", PATHS["OVSDB"], "OVN_Southbound", "Chassis_Private", "external_ids")
        wait_for("the metadata agent", lambda: "neutron:ovn-metadata-id" in ask(*agents), 60, SERVICES["network-meta"])
    if asked_for(cfg, "VOLUMES_SIZE"):
        with step("Wait for the volume host"):
            pools = lambda: list(cloud(cfg).block_storage.backend_pools())
            wait_for("the volume host in the scheduler", pools, 90, SERVICES["volume"])


def merge_memory(cfg: Settings) -> None:
    """Have this kernel keep once what is the same in several processes, unless its owner does that anyway: conf/ksm."""
    if cfg.MERGES:
        with step("Have equal memory kept once"):
            if text_of(KSM / "run").strip() == "0":
                back = f"echo 2 >run; echo {text_of(KSM / 'pages_to_scan').strip()} >pages_to_scan; echo 0 >run"  # 2: forget
                record("sh", "-c", f"cd {KSM} && grep -qx -e 0 -e 500 run pages_to_scan && {{ {back}; }}")  # or owner's
            open_windows(cfg, MERGER)


def servers_that_ran(cfg: Settings) -> list[Any]:
    """The instances that have to run: those that nova believes do, but for one that is being deleted."""
    servers = those_of(cfg, "compute.servers", all_projects=True)
    return [each for each in servers if each.status == "ACTIVE" and not each.task_state]


def is_compute_up(cfg: Settings) -> bool:
    """Does nova take its compute host for alive? After a long stop not before its next report."""
    (host,) = those_of(cfg, "compute.services", binary="nova-compute", host=socket.gethostname())
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
        wait_for_services(cfg, COMPUTE, seconds=limit)
        for server in ran:
            if is_active(cfg, server) and server.id not in running_guests(cfg):
                api(cfg, f"openstack server reboot --hard {server.id}", "compute.reboot_server", server, "HARD")
        for server in ran:
            again = lambda server=server: is_active(cfg, server) and server.id in running_guests(cfg)
            wait_for(f"the instance {server.name}", again, limit)


def smoke_test(cfg: Settings) -> None:
    """Boot an instance, reach it by ping and by ssh through a floating address, delete it."""
    key = STATE / "run/smoke"
    with step("Boot an instance and reach it by ssh"):
        do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "smoke", "-f", key)
        public_key = "" if DRY_RUN else key.with_suffix(".pub").read_text()
        _, port, image = in_parallel(
            lambda: create(cfg, "compute", "keypair", "smoke", public_key=public_key),
            lambda: create(cfg, "network", "port", "smoke", network_id=find(cfg, "network", "network", "private").id),
            lambda: find(cfg, "image", "image", "ami-tty"),
        )
        which = dict(flavor_id=FLAVORS[0][1], image_id=image.id, key_name="smoke")
        server = create(cfg, "compute", "server", "smoke", networks=[{"port": port.id}], **which)
        where = dict(floating_network_id=find(cfg, "network", "network", "public").id, port_id=port.id)
        line = f"openstack floating ip create --port {port.id} public"
        address = named("ADDRESS", api(cfg, line, "network.create_ip", **where))
        wait_for("the instance", lambda: is_active(cfg, server), 120)
        place = address.floating_ip_address
        login = ("timeout", 15, "ssh", "-i", key, *shlex.split("-oBatchMode=yes -oConnectTimeout=3 -oLogLevel=ERROR"))
        login += ("-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null")  # the next one at this address is another
        pinged = lambda: " 0% packet loss" in ask("ping", "-c1", "-W0.3", place, ok=(0, 1))
        with telling_console(cfg, server):
            wait_for(f"ping of {place}", pinged, 60)
            wait_for(f"ssh to {place}", lambda: ask(*login, f"root@{place}", "hostname", default="") == "smoke", 90)
    with step("Delete it again"):
        delete(cfg, "compute", "server", server)
        wait_for("the instance's end", lambda: not cloud(cfg).compute.find_server(server.id), 60)
        delete(cfg, "network", "ip", address)
        delete(cfg, "network", "port", port)
        delete(cfg, "compute", "keypair", find(cfg, "compute", "keypair", "smoke"))


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
    services = rows(cfg, tuple(SERVICES.values())) if ours else []
    found: dict[str, Any] = {"folder": str(cfg.DIR), "session": cfg.SCREEN_NAME}
    found["up_since"] = iso(up.stat().st_mtime) if ours and up.exists() else None
    found["stopped"] = not ours and (cfg.DIR / "state" / KEPT.name).exists()
    found["windows"] = [window_state(service, ours) for service in services]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found["apis"] = list(pool.map(lambda service: api_state(cfg, service), (s for s in services if "http" in s.answers)))
        who_asks = any(api["api"] == "keystone" and api["answers_in_ms"] is not None for api in found["apis"])
        asked = [row for row in LISTED if who_asks and row[1] in {kind for _, kind, _ in rows(cfg, ENDPOINTS)}]
        found |= zip([row[0] for row in asked], pool.map(lambda row: listed(cfg, *row[2:]), asked), strict=True)
    return {**found, "problems": list(problems(found))}


def iso(seconds: float) -> str:
    """A time as programs and people read it."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def window_state(service: Service, ours: set[int]) -> dict[str, Any]:
    """Since when the service of a window runs, how often it was started again, and the memory (PSS) of its processes."""
    deaths = lines_of(STATE / f"run/{service.window}.died")
    state: dict[str, Any] = {"window": service.window, "running_since": None, "restarts": len(deaths), "memory": 0}
    with contextlib.suppress(psutil.Error):
        if (it := service_of(service.window)) and it.pid in ours:
            own = it.children(recursive=True)
            if service.window == "preload":  # below which most others are
                own = [each for each in own if each.name().startswith("preload")]
            state["memory"] = sum(each.memory_full_info().pss for each in (it, *own))
            state["running_since"] = iso(it.create_time())
    return state


def api_state(cfg: Settings, service: Service) -> dict[str, Any]:
    """How long an API takes to answer; None where it does not."""
    place, began = render(service.answers, cfg), time.monotonic()
    answered = answers(place)
    return {"api": service.window, "url": place, "answers_in_ms": round((time.monotonic() - began) * 1000) if answered else None}


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
            end_windows(OPENSTACK, 3)
        with step("Shut the instances down"):
            shut_down_guests(cfg)
    with step("End what they stood on, and remove bridges and rules"):
        take_down(cfg, 20)
        remove_traces()
    if not DRY_RUN:
        say(f"The cloud in {cfg.DIR} is stopped, and kept. To bring it back: sudo python3 nova.py start")


def in_the_making(cfg: Settings) -> list[str]:
    """The instances and volumes that something is being done to."""
    return [name for _, database, those, busy in rows(cfg, THINGS) for name in names_in(cfg, database, f"{those} AND {busy}")]


def shut_down_guests(cfg: Settings) -> None:
    """Each is told to power off, as by its button. Who has not after ten seconds is ended with the rest: see take_down."""
    place = "lxc:///" if cfg.LIBVIRT_TYPE == "lxc" else "qemu:///system"
    for guest in running_guests(cfg):
        forgiven(do, "virsh", "--connect", place, "shutdown", guest)
    forgiven(wait_for, "the guests' end", lambda: not running_guests(cfg), 10)


# ---- terminate ----


def terminate(cfg: Settings) -> None:
    """End every instance and every volume through the API; where that does not answer, the instances through libvirt.

    Volumes are then deleted by the next run, with everything else, objects always: see EMPTIED.
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


def delete_everything(cfg: Settings) -> None:
    """Every project's instances, and every floating address."""
    servers = functools.partial(cloud(cfg).compute.servers, all_projects=True)
    for server in (those := list(servers())):
        delete(cfg, "compute", "server", server, force=True)
    wait_for(f"the end of {len(those)} instances", lambda: not list(servers()), 60)
    for address in cloud(cfg).network.ips():
        delete(cfg, "network", "ip", address)


def delete_volumes(cfg: Settings) -> None:
    """Every project's volumes with their snapshots, whatever state they are in."""
    storage = cloud(cfg).block_storage
    volumes = functools.partial(storage.volumes, all_projects=True)
    for each in storage.attachments(all_projects=True):  # of instances that are no more
        line = f"openstack --os-volume-api-version 3.27 volume attachment delete {each.id}"
        api(cfg, line, "block_storage.delete", f"/attachments/{each.id}", microversion="3.27")
    for each in (those := list(volumes())):
        where = f"/volumes/{each.id}?cascade=true&force=true"
        api(cfg, f"openstack volume delete --force --purge {each.id}", "block_storage.delete", where, microversion="3.23")
    wait_for(f"the end of {len(those)} volumes", lambda: not list(volumes()), 60)


def destroy_domains() -> None:
    """The domains of this cloud's own libvirt: destroyed and forgotten."""
    if answers("/run/libvirt/libvirt-sock"):
        for virsh, *options in ((("virsh",), "--nvram", "--managed-save"), (("virsh", "--connect", "lxc:///"),)):
            for name in ask(*virsh, "list", "--all", "--name", default="").split():
                forgiven(do, *virsh, "destroy", name)
                forgiven(do, *virsh, "undefine", *options, name)


# ---- clean ----


def clean(cfg: Settings) -> None:
    """End the session and every process that it started; the machine's own are not touched."""
    with step("End the session and its processes"):
        take_down(cfg)


def end_windows(services: tuple[Service, ...], seconds: float) -> None:
    """End what runs in the windows of these services."""
    files = [STATE / f"run/{service.window}.pid" for service in services]
    keepers = {int(number) for path in files if (number := text_of(path).strip())}  # none where the disk was full
    remove(*files)  # no keep follows one that is killed: conf/window.tmpl
    end_processes([p for p in processes() if p.pid in keepers], seconds)


def take_down(cfg: Settings, seconds: float = 0.2) -> None:
    """End windows and guests, OpenStack before what it stands on; then whatever of ours is still there.

    `seconds` are for what OpenStack stands on, whose data is kept; clean, as a crash, gives it hardly any.
    """
    if "ovs-vswitchd" in [process.name() for process in processes()]:  # a run that was cut off before it marked them
        mark_bridges()
    end_windows(MERGER, 3)  # or the kernel goes on
    end_windows(OPENSTACK, min(seconds, 3))
    end_windows((SERVICES["rabbit"],), 0)  # its messages do not outlive it (ENDED), and it takes a second to end
    end_windows(PRELOAD + SERVERS, seconds)
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
    remove_policy()
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):  # where nova did not end a container, its disk is one still
        if file.read_text().strip().removesuffix("/disk")[-36:] in containers():
            forgiven(do, "losetup", "--detach", f"/dev/{file.parents[1].name}")
    undo_recorded()
    for device in sorted(Path("/sys/class/net").glob("tap*")):
        address = (device / "address").read_text() if (device / "tun_flags").exists() else ""
        if address[2:].startswith(str(PATHS["MAC_PREFIX"])[2:]):
            forgiven(do, "ip", "link", "delete", device.name)
    if not is_kept():
        remove(STATE / "record", *STATE.glob("libvirt/etc/qemu/*.xml"), *STATE.glob("libvirt/etc/lxc/*.xml"))


# ---- uninstall ----


def uninstall(cfg: Settings, *options: str) -> None:
    """Take back all that was done to this machine, and show that it is as it was before the first command."""
    keep, yes = ("--keep-cache" in options), ("--yes" if "--yes" in options else "")
    if other := other_cloud():
        raise Failure(f"Refusing to uninstall ({other} is up)", "end that one first")
    lost, tops = list[str](), list[str]()
    if STATE.exists():
        scrub(cfg, yes)
        lost, tops = changes(), tree()["top"]
    leave_mounts()
    earlier = look_at_machine()  # while the programs that show rules are here
    others = other_folders(cfg)
    if not others and BEFORE.exists():
        remove_packages(cfg)
    if (cfg.DIR / "state").exists():
        remove_folder(cfg, [] if lost else tops, keep)
    if lost:
        say(f"Your {len(lost)} changes stay in {cfg.DIR}: {', '.join(lost[:5])}")
    if others:
        write_file(CLOUDS, json.dumps(dict.fromkeys(others, "")), 0o600)
        say(f"Packages and users stay, for the cloud in {others[0]}: uninstall that one too")
        return
    undo_recorded(UNDOES)
    if BEFORE.exists():
        compare(earlier)
    do("rm", "--recursive", "--force", MACHINE, LOCK)
    if not keep:  # last: this program runs from it
        do("rm", "--recursive", "--force", HERE / ".tool.lock", TOOL)


def remove_packages(cfg: Settings) -> None:
    """Packages that came for clouds go, with what they leave behind; those that others need by now stay."""
    remove_policy()
    if INSTALLING.exists():  # an install that was cut off: what is not configured stays so, or it would start services
        note_brought()
    brought, was, now = kept(BROUGHT), kept(BEFORE)["packages"], package_states()
    names = {name for name in brought.get("packages", ()) if name in now and was.get(name) != "installed"}
    with step(f"Remove {len(names)} packages"):
        wait_for("dpkg (another program is at work)", dpkg_is_free, 300)
        archives = cfg.DIR / "state/cache/apt/archives"
        halves = [deb for name in sorted(names) if now[name] == "half-installed" for deb in archives.glob(f"{name}_*.deb")]
        if halves:  # cut off amid its files, of which dpkg has no list yet
            forgiven(do, "dpkg", "--unpack", *halves, env=QUIET)
        stay = needed(names)
        gone = names - stay.keys()
        known = gone & was.keys()  # removed earlier, their configuration kept: it is kept again
        places = ask("dpkg-query", "--listfiles", *sorted(gone), default="").splitlines() if gone else []
        for verb, those in (("--remove", gone if known else ()), ("--purge", gone - known)):
            if those:
                do("dpkg", verb, "--force-remove-reinstreq", *sorted(those), env={**QUIET, "SUDO_FORCE_REMOVE": "yes"})
        remove_empty({place for place in places if Path(place).is_dir() and not DRY_RUN} - {"/.", ""})
        for name, who in sorted(stay.items()):
            say(f"  {name} stays: {who} needs it")
        if not stay:
            remove_leftovers(brought)


def remove_empty(folders: set[str]) -> None:
    """Of packages' folders those that are empty and that no package has any more: dpkg leaves some (Debian 12: /usr/lib/ocf)."""
    owned = re.findall(r": (/.*)$", ask("dpkg-query", "--search", *folders, ok=(0, 1)), re.M) if folders else []
    if empty := sorted(folders - {*owned}, reverse=True):
        do("rmdir", "--ignore-fail-on-non-empty", *empty)


def needed(names: set[str]) -> dict[str, str]:
    """Those of these packages that others need by now, and who: a process that runs from one, or a package, as dpkg sees it."""
    stay, running = dict[str, str](), dict[str, str]()
    for each in psutil.process_iter(["name", "exe"]):
        program = each.info["exe"] or ""  # dpkg may know it without /usr
        running |= dict.fromkeys((program, program.removeprefix("/usr")), f"{each.info['name']} (process {each.pid})")
    for link in Path("/etc/systemd/system").glob("*.*/*"):  # all were disabled (no_services): somebody wants this one
        unit = str(link.readlink()) if link.is_symlink() else ""
        running |= dict.fromkeys((unit, unit.removeprefix("/usr"), f"/usr{unit}"), f"{link.name} (a service that is enabled)")
    for owner, program in re.findall(r"^([^:,\s]+).*: (/.*)$", ask("dpkg-query", "--search", *running, ok=(0, 1)), re.M):
        if owner in names:
            stay[owner] = running[program]
    while rest := sorted(names - stay.keys()):
        said = ask("dpkg", "--simulate", "--abort-after=9999", "--purge", *rest, ok=(0, 1), errors=True)
        if not (more := re.findall(r"problems prevent removal of ([^:\s]+)\S*\n\s+(\S+) depends on", said)):
            break
        stay |= dict(more)
    return stay


def remove_leftovers(brought: dict[str, list[str]]) -> None:
    """What Debian's packages leave behind: files in /etc, folders below /var, users and groups."""
    was, remove = kept(BEFORE), ("rm", "--recursive", "--force", "--one-file-system")
    for what, command in (("files", remove), ("folders", remove), ("users", ("userdel",)), ("groups", ("groupdel",))):
        now = LOOKS[what]() or {}
        for name in sorted(brought.get(what, ()), reverse=True):
            if name in now and name not in was[what]:
                forgiven(do, *command, name)


def remove_folder(cfg: Settings, tops: list[str], keep: bool) -> None:
    """DIR goes, but for a tree that has changes, and for what keep asks to keep."""
    state = [path for path in (cfg.DIR / "state").glob("*") if not keep or path.name != "cache"]
    with step(f"Remove {cfg.DIR}"):
        LOG_FILE.clear()
        for places in ([cfg.DIR / name for name in {*OWN, *tops} - {"state"}], state):  # the state knows of the others
            do("rm", "--recursive", "--force", "--one-file-system", *sorted(places))
        do("rmdir", "--ignore-fail-on-non-empty", cfg.DIR / "state", cfg.DIR)


def compare(earlier: dict[str, Seen | None]) -> None:
    """Failure where the machine is not as it was before the first command."""
    if DRY_RUN:
        return

    def now() -> dict[str, Seen | None]:
        return earlier | {what: seen for what, seen in look_at_machine().items() if seen is not None}

    with step("Compare the machine with what it was"):
        forgiven(wait_for, "the machine as it was", lambda: not differences(kept(BEFORE), now()), 5)
        if different := differences(kept(BEFORE), now()):
            print(table(different))
            way = f"see to them and repeat; or, where all is well: rm -r {MACHINE}"
            raise Failure(f"{len(different)} things are not as they were before the first command", way)


# ---- Command line ----


def settings(cfg: Settings) -> None:
    """Print each variable with its value and its meaning; a star where the value was chosen and is not the default."""
    for row in fields(Settings):
        value = int(value) if isinstance(value := getattr(cfg, row.name), bool) else value
        shown = "(set)" if row.name in SECRETS and value else value
        mark = "*" if os.environ.get(row.name) and getattr(cfg, row.name) != row.default else " "
        print(f"{mark} {row.name + '=' + str(shown):34} {row.metadata['meaning']}")


OF_A_CLOUD = ("status", "stop", "start", "terminate", "clean", "scrub", "uninstall")  # with the settings that it was made with
VERBS = {
    verb.__name__: verb
    for verb in (branch, install, run, run_detached, status, stop, start, terminate, clean, scrub, uninstall, settings)
}
OPTIONS = {
    "status": ("--json",), "run": ("--yes",), "run_detached": ("--yes",), "scrub": ("--yes",),
    "uninstall": ("--keep-cache", "--yes"),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Carry out one verb; returns the exit code: 0 done, 1 failed, 2 usage, 130 Ctrl-C."""
    os.umask(0o022)
    signal.signal(signal.SIGINT, interrupt)
    log.setLevel(logging.DEBUG)
    log.addHandler(logging.StreamHandler() if "-v" in arguments else logging.NullHandler())
    verb, *rest = [a for a in arguments if a not in FLAGS]
    options = sorted({word for word in rest if word in OPTIONS.get(verb, ())})
    rest = [word for word in rest if word not in options]
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
        # run is not at work while its session is shown, and status disturbs nobody
        alone = contextlib.nullcontext() if verb in ("run", "status") or DRY_RUN else only_one(verb)
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


def prepare_folder(cfg: Settings, verb: str) -> None:
    """DIR is there, or is made by the verbs that may; its log begins; the private mounts are in place."""
    check_words(Settings(DIR=cfg.DIR))
    if verb == "uninstall" and not (cfg.DIR / "state").exists() and not other_folders(cfg):
        return  # it came so far before, or DIR was deleted by hand
    marks = ("log/nova.log", "record", "settings.json", TREE.name, KEPT.name)  # others have folders called state as well
    ours = str(cfg.DIR) in kept(CLOUDS) or any((cfg.DIR / "state" / name).exists() for name in marks)
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
    look = verb not in OF_A_CLOUD and not BEFORE.exists()
    before, missing = look_at_machine() if look else {}, [each for each in (cfg.DIR, *cfg.DIR.parents) if not each.exists()]
    if DRY_RUN:
        print("exec unshare --mount --propagation slave bash  # with mounts of its own; what follows is typed there")
    try:
        make_folder(cfg.DIR / "state")
        start_log(cfg)
    except OSError as error:
        raise Failure(f"cannot use {cfg.DIR} as the cloud's folder: {error.strerror}", "name another: nova.py VERB DIR") from None
    if verb not in OF_A_CLOUD:
        keep_look(cfg, before, missing)
    private_mounts(cfg)
    if verb in OF_A_CLOUD:
        private_libvirt(cfg)


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
