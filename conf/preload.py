# written by nova.py; edit conf/preload.py
"""preload.py USER: imports what OpenStack's services need, once. Each is then forked from here, when conf/fork asks for it.

An import takes seconds of processor and tens of MiB; what is forked has it at once, and shares the memory. What all need
is imported first; then a process for each of KINDS, since their options do not fit into one configuration, imports the
rest. Services are children of these and end with them; each has the credentials, the environment, the terminal and the
life of the conf/fork that asked for it, which is root's or USER's. What was edited since it was imported is not forked: is_stale.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib.machinery
import importlib.util
import json
import os
import pwd
import random
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import setproctitle

# fmt: off
SHARED = (
    "oslo_config.cfg", "oslo_log.log", "oslo_db.sqlalchemy.enginefacade", "oslo_policy.policy", "oslo_messaging.notify",
    "oslo_messaging._drivers.impl_rabbit", "kombu.transport.pyamqp", "keystonemiddleware.auth_token", "keystoneauth1.loading",
    "oslo_cache.backends.dictionary", "oslo_middleware", "oslo_middleware.healthcheck", "osprofiler.sqlalchemy", "dogpile.cache",
    "pymysql", "jsonschema", "routes", "paste.urlmap", "OpenSSL.SSL", "cryptography.x509", "pyuwsgi", "alembic.context",
    "openstack.connection", "oslo_limit.limit", "oslo_reports.guru_meditation_report", "oslo_versionedobjects.base", "os_traits",
    "pyroute2", "cinderclient.v3.client", "cursive.signature_utils", "os_brick.initiator.connector", "castellan.key_manager",
    "osprofiler.opts", "routes.middleware", "paste.deploy", "keystoneauth1.loading._plugins.identity.generic", "netrc",
)
# kind, its configuration, for what modules want to know of it while they are imported, and its modules
KINDS = {
    "nova": ("nova.conf", (
        "nova.cmd.compute", "nova.cmd.conductor", "nova.cmd.scheduler", "nova.api.openstack.wsgi_app",
        "nova.api.openstack.compute.routes", "nova.api.metadata.handler", "nova.compute.manager", "nova.conductor.manager",
        "nova.scheduler.manager", "nova.scheduler.filters.compute_filter", "nova.virt.libvirt.driver", "nova.network.neutron",
        "nova.servicegroup.drivers.db", "neutronclient.v2_0.client", "cinderclient.v3.client", "vif_plug_ovs.ovs",
        "os_brick.initiator.connector",
    )),
    "net": ("neutron.conf", (
        "neutron.server", "neutron.cmd.agents.ovn_metadata", "neutron.plugins.ml2.plugin", "neutron.services.ovn_l3.plugin",
        "neutron.plugins.ml2.drivers.ovn.mech_driver.mech_driver", "neutron.pecan_wsgi.app", "novaclient.v2.client",
    )),
}
# fmt: on
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, SO_PEERGROUPS = 1, 4, 15, 59  # prctl(2), socket(7)
prctl = ctypes.CDLL(None).prctl
COLLECTS = gc.get_threshold()


class Imports:
    """Modules that are imported otherwise than usual.

    Not at all, as if they were not installed: what some modules import where they can. nova refuses to share a process with
    eventlet; mako would show its errors in colours, with all of pygments' languages.
    At first use: keystone imports all of SAML, with XML's schemas, and needs it where somebody federates.
    """

    without = frozenset({"eventlet", "mako.ext.pygmentplugin"})
    lazy = "saml2."

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in self.without:
            raise ModuleNotFoundError(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name.startswith(self.lazy) else None
        if spec and spec.loader:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def import_all(modules: tuple[str, ...]) -> None:
    """What cannot be imported is told: the service that needs it will say so too."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:
            traceback.print_exc()


def fork(name: str) -> int:
    """os.fork; the child is called `name` where processes are listed, and ends with its parent."""
    parent = os.getpid()
    if child := os.fork():
        return child
    end_with(parent, name)
    return 0


def end_with(parent: int, name: str, number: signal.Signals = signal.SIGTERM) -> None:
    """This process, called `name`, gets this signal when its parent has ended."""
    prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
    prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("preload has ended")


def files_now(*more: str) -> dict[bytes, int]:
    """The files of all modules here, and when each was changed last (ns); 0 where it is gone.

    As copies that lie beside each other: going through the modules' own names at each fork would end the sharing of what
    lies around them.
    """
    files = {*more} | {str(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    return {os.fsencode(file): changed(file) for file in files}


def changed(file: str | bytes) -> int:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0


def is_stale(files: dict[bytes, int]) -> bool:
    """Was a module edited since? Then the service is to import all by itself, or an edit would not be seen."""
    return any(changed(file) != when for file, when in files.items())


def serve(kind: str, owner: int, files: dict[bytes, int], others: tuple[int, ...] = ()) -> NoReturn:
    """Fork a service for root or `owner` (uid), and tell who asked its process and how it ended; end it when he has.

    `others` are processes without which this one ends as well. Nobody else may ask: what is in this memory was root's.
    """
    place, eyes = f"run/preload-{kind}", selectors.DefaultSelector()
    if threading.active_count() > 1:
        sys.exit(f"{kind}: one of its modules starts a thread, and nobody forks those")
    door = socket.socket(socket.AF_UNIX)
    if os.path.lexists(place):
        os.unlink(place)
    os.umask(0o177)
    door.bind(place)
    os.umask(0o022)
    os.chown(place, owner, -1)
    door.listen(100)
    sys._clear_type_cache()  # names that it holds are let go of one by one, later, in each child
    gc.freeze()  # what is here stays, and is not looked at again, so it stays shared
    gc.set_threshold(*COLLECTS)
    eyes.register(door, selectors.EVENT_READ)
    for other in others:
        eyes.register(os.pidfd_open(other), selectors.EVENT_READ)
    while True:
        key = eyes.select()[0][0]  # one at a time: it may be the end of the next one, too
        if key.fileobj is door:
            answer(door.accept()[0], owner, files, eyes)
        elif isinstance(key.fileobj, socket.socket):  # who asked is gone
            eyes.unregister(key.fileobj)
            os.kill(key.data, signal.SIGKILL)
        elif not key.data:
            sys.exit("one of preload's processes has ended")
        else:
            asker, child = key.data
            eyes.unregister(key.fileobj)
            os.close(key.fd)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if asker in eyes.get_map():
                eyes.unregister(asker)
                with contextlib.suppress(OSError):
                    asker.sendall(b"%d\n" % (code if code >= 0 else 128 - code))
            asker.close()


def answer(asker: socket.socket, owner: int, files: dict[bytes, int], eyes: selectors.BaseSelector) -> None:
    """One request, in full within five seconds. Whatever is wrong with it, the others' services go on."""
    fds, child = list[int](), -1
    try:
        _, uid, gid = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        groups = asker.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
        wanted = request(asker, fds)
        if wanted and is_stale(files):
            asker.sendall(b"0\n")
        elif wanted and uid in (0, owner):
            sys.stdout.flush()
            child = fork(wanted["name"])
    except Exception:
        traceback.print_exc()
    if not child:
        become(wanted, fds, uid, gid, struct.unpack(f"{len(groups) // 4}I", groups))
    for fd in fds:
        os.close(fd)
    if child < 0:
        return asker.close()
    eyes.register(asker, selectors.EVENT_READ, child)
    eyes.register(os.pidfd_open(child), selectors.EVENT_READ, (asker, child))
    with contextlib.suppress(OSError):  # then its end is seen next
        asker.sendall(b"%d\n" % child)


def request(asker: socket.socket, fds: list[int]) -> dict[str, Any]:
    """{argv, cwd, env} in JSON on a line, with standard input, output and error, and a name; nothing where nothing was said."""
    limit, text = time.monotonic() + 5, b""
    while not text.endswith(b"\n") and len(text) < 1 << 20:
        asker.settimeout(max(limit - time.monotonic(), 0.001))
        more, some, _, _ = socket.recv_fds(asker, 1 << 16, 3)
        fds += some
        if not (text := text + more):  # somebody looked whether we are here
            return {}
        if not more:
            raise ValueError("cut off")
    wanted = json.loads(text)
    name = os.path.basename(wanted["argv"][0])
    if len(fds) != 3 or not all(isinstance(word, str) for word in (*wanted["argv"], wanted["cwd"], *wanted["env"].values())):
        raise ValueError(f"not a request: {name}")
    return {**wanted, "name": name}


def become(wanted: dict[str, Any], fds: list[int], uid: int, gid: int, groups: tuple[int, ...]) -> NoReturn:
    """In the child: be what was asked for, with the credentials of who asked, as the kernel tells them."""
    parent = os.getppid()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    os.setsid()
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # its own files in /proc are its own
    end_with(parent, wanted["name"], signal.SIGKILL)  # again, as the kernel has forgotten it; nobody else ends what hangs then
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(wanted["cwd"])
    setproctitle.setproctitle(shlex.join(wanted["argv"]))  # before the environment goes, by which it finds the place
    os.environ.clear()
    os.environ.update(wanted["env"])
    random.seed()
    sys.argv = wanted["argv"]
    codes = [1]
    atexit.register(lambda: os._exit(codes[0]))  # last of all: nobody takes apart module by module what is shared
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    try:
        runpy.run_path(str(shutil.which(sys.argv[0], path=path)), run_name="__main__")
        codes[0] = 0
    except SystemExit as ended:
        codes[0] = int(ended.code or 0) if isinstance(ended.code, int | None) else 1
        raise
    sys.exit()


def main() -> None:
    sys.dont_write_bytecode = True  # root's, in a user's tree
    prctl(PR_SET_NAME, b"preload", 0, 0, 0)
    owner = pwd.getpwnam(sys.argv[1]).pw_uid
    imports = Imports()
    sys.meta_path.insert(0, imports)
    from oslo_config import cfg
    from oslo_service import backend
    from sqlalchemy import orm

    backend.init_backend(backend.BackendType.THREADING)  # as nova and neutron do
    gc.set_threshold(*COLLECTS[:2], 1_000_000)  # what is imported is not garbage: a fifth faster
    import_all(SHARED)
    others = list[int]()
    for kind, (configuration, modules) in KINDS.items():
        if other := fork(f"preload-{kind}"):
            others.append(other)
            continue
        if kind != "nova":
            imports.without -= {"eventlet"}
        cfg.CONF(args=[], default_config_files=[f"conf/{configuration}"])
        import_all(modules)
        cfg.CONF.clear()
        orm.configure_mappers()  # or each does it at its first query
        serve(kind, owner, files_now(f"conf/{configuration}"))
    serve("any", owner, files_now(), tuple(others))


if __name__ == "__main__":
    main()
