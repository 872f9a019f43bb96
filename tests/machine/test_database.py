# SPDX-License-Identifier: Apache-2.0
"""USE_MYSQL=0 under load, and where a cloud's secrets are."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pty
import re
import shutil
import sqlite3
import stat
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openstack
import psutil
import pytest

from .conftest import NOVA_PY, USER, Machine, eventually, on
from .test_volumes import becomes, create, delete, share

pytestmark = on("flat")
INSTANCES, CLIENTS = 20, 8
OWN = threading.local()
# What a service says when it could not use its database, or when an API answered with 500.
TROUBLE = re.compile(rb"database is locked|DBDeadlock|status: 500|HTTP 500|Internal Server Error|Unexpected API Error")


def connect(machine: Machine) -> Any:
    """A connection of its own to the cloud's APIs as admin."""
    files = openstack.config.OpenStackConfig(config_files=[f"{machine.folder}/nova/clouds.yaml"], load_envvars=False)
    return openstack.connection.Connection(config=files.get_one("nova"))


def own_connection(machine: Machine) -> Any:
    """The same for each thread, made once: a client of its own."""
    OWN.connection = getattr(OWN, "connection", None) or connect(machine)
    return OWN.connection


def troubles(machine: Machine) -> list[str]:
    """The lines of all windows' logs that TROUBLE finds, and of which window; nova.log tells of earlier clouds as well."""
    logs = sorted(path for path in (machine.folder / "nova/state/log").glob("*.log") if path.name != "nova.log")
    lines = ((log.name, line) for log in logs for line in log.read_bytes().splitlines())
    return [f"{name}: {line.decode(errors='replace')}" for name, line in lines if TROUBLE.search(line)]


@pytest.fixture
def room(cloud: Machine) -> Any:
    """A connection to a cloud that lets INSTANCES in: by its quota, and by processors that are counted more often."""
    admin = connect(cloud)
    admin.compute.update_quota_set(admin.current_project_id, instances=-1, cores=-1, ram=-1)
    provider = next(iter(admin.placement.resource_providers()))
    place = f"/resource_providers/{provider.id}/inventories/VCPU"
    inventory = admin.placement.get(place).json()
    done = admin.placement.put(place, json={**inventory, "allocation_ratio": float(INSTANCES)})
    assert done.status_code == 200, done.text
    return admin


def test_databases_are_files_that_only_their_user_reaches(cloud: Machine) -> None:
    folder = cloud.folder / "nova/state/databases/sqlite"
    assert {p.name for p in folder.iterdir()} >= {"keystone", "glance", "placement", "nova_api", "nova_cell0", "nova_cell1"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {p.stat().st_uid for p in (folder, *folder.iterdir())} == {USER}
    assert [p.name for p in folder.iterdir() if p.read_bytes()[:6] != b"SQLite" and not re.search("-(wal|shm)$", p.name)] == []
    in_mariadb = {p.name for p in (folder.parent / "mysql").iterdir() if p.is_dir()}
    assert in_mariadb == {"mysql", "neutron", "performance_schema", "sys"}


def test_20_instances_by_8_clients_at_once(cloud: Machine, room: Any) -> None:
    """Each client boots one after the other and looks at all of them in between, as an impatient user does."""
    names = [f"load-{n}" for n in range(INSTANCES)]
    what = dict(
        flavor_id=room.compute.find_flavor("m1.tiny").id,
        image_id=room.image.find_image("ami-tty").id,
        networks=[{"uuid": room.network.find_network("private").id}],
    )

    def boot(name: str) -> Any:
        """Ask for an instance and wait until it is done with, well or not."""
        compute = own_connection(cloud).compute
        server = compute.create_server(name=name, **what)

        def ended() -> Any:
            list(compute.servers())
            now = compute.get_server(server.id)
            return now if now.status in ("ACTIVE", "ERROR") else None

        return eventually(name, ended, 900)

    with ThreadPoolExecutor(CLIENTS) as pool:
        servers = list(pool.map(boot, names))
    assert {s.name: (s.status, (s.fault or {}).get("message")) for s in servers if s.status != "ACTIVE"} == {}
    assert len(servers) == len({s.id for s in servers}) == INSTANCES
    for server in servers:
        room.compute.delete_server(server)
    eventually("their end", lambda: not {s.id for s in servers} & {s.id for s in room.compute.servers()}, 300)
    assert troubles(cloud) == []


def test_400_allocations_by_8_clients_at_once(cloud: Machine, room: Any) -> None:
    """Where another request has changed the provider between placement's look and its write, placement tries again."""
    provider = next(iter(room.placement.resource_providers())).id
    what = {
        "allocations": {provider: {"resources": {"MEMORY_MB": 64}}},
        "project_id": room.current_project_id,
        "user_id": room.current_user_id,
        "consumer_generation": None,
        "consumer_type": "INSTANCE",
    }

    def take(_number: int) -> tuple[int, int]:
        """Take some room and give it back: what is answered to either."""
        placement, place = own_connection(cloud).placement, f"/allocations/{uuid.uuid4()}"
        taken = placement.put(place, json=what, microversion="1.38")
        return taken.status_code, placement.delete(place).status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert collections.Counter(pool.map(take, range(400))) == {(204, 204): 400}
    assert troubles(cloud) == []


def test_8_volumes_at_once(cloud: Machine) -> None:
    """cinder too is on SQLite."""

    def make(name: str) -> str:
        storage = connect(cloud).block_storage
        volume = storage.create_volume(name=name, size=1)
        ended = lambda: (now := storage.get_volume(volume.id).status) in ("available", "error") and now
        status = str(eventually(name, ended, 300))
        storage.delete_volume(volume.id)
        eventually(f"the end of {name}", lambda: volume.id not in [v.id for v in storage.volumes()], 300)
        return status

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(make, [f"load-{n}" for n in range(CLIENTS)])) == ["available"] * CLIENTS
    assert (cloud.folder / "nova/state/databases/sqlite/cinder").exists()
    assert troubles(cloud) == []


@pytest.mark.slow
def test_backups_are_files_in_cinders_folder(cloud: Machine) -> None:
    """Where there is no swift."""
    create(cloud, "saved", "--size 1 --image ami-tty")
    cloud.shell("openstack volume backup create --name kept saved")
    becomes(cloud, "volume backup", "kept", "available")
    assert [path for path in (cloud.folder / "nova/state/cinder/backup").rglob("volume_*") if path.stat().st_size]
    cloud.shell("openstack volume backup restore kept again")
    becomes(cloud, "volume", "again", "available")
    files = [share(cloud) / f"volume-{cloud.openstack(f'volume show {name}')['id']}" for name in ("saved", "again")]
    assert subprocess.run(["cmp", *map(str, files)], check=False).returncode == 0
    assert files[0].read_bytes()[1024:5120] != b"\0" * 4096
    delete(cloud, "volume backup", "kept")
    delete(cloud, "volume", "saved", "again")


# ---- Secrets ----


def secrets(machine: Machine) -> dict[str, bytes]:
    """Every secret that nova.py made or was given."""
    state = machine.folder / "nova/state"
    found = {name: value.encode() for name, value in json.loads((state / "passwords.json").read_text()).items()}
    found |= {str(p.relative_to(state)): p.read_bytes().strip() for p in state.glob("keystone/*/*")}
    assert len(found) >= 9 and min(map(len, found.values())) >= 8
    return found


def told(content: bytes, known: dict[str, bytes]) -> list[str]:
    """Which secrets are in it."""
    return [name for name, value in known.items() if value in content]


def commands_that_tell(known: dict[str, bytes]) -> dict[int, list[str]]:
    """The processes, of the cloud or not, with a secret in their command line."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):  # it has ended
            found[process.pid] = told(Path(f"/proc/{process.pid}/cmdline").read_bytes(), known)
    return {pid: names for pid, names in found.items() if names}


def open_files(top: Path) -> list[Path]:
    """The files below a folder that somebody else than their owner could read, folders on the way included."""
    found = []
    for here, folders, files in os.walk(top):
        folders[:] = [f for f in folders if not os.path.islink(f"{here}/{f}") and os.lstat(f"{here}/{f}").st_mode & 0o011]
        paths = [Path(here, file) for file in files]
        found += [p for p in paths if stat.S_ISREG(mode := p.lstat().st_mode) and mode & 0o044]
    return found


def test_no_secret_is_in_a_command_line(cloud: Machine) -> None:
    known = secrets(cloud)
    cloud.shell("openstack server list")
    assert commands_that_tell(known) == {}
    with subprocess.Popen(["cat", "-", known["RABBIT_PASS"]], stdin=subprocess.PIPE) as planted:
        eventually("that it would be seen", lambda: commands_that_tell(known) == {planted.pid: ["RABBIT_PASS"]})
        planted.kill()


def test_no_secret_is_in_a_log(cloud: Machine) -> None:
    known, logs = secrets(cloud), [p for p in (cloud.folder / "nova/state/log").rglob("*") if p.is_file()]
    assert {"nova.log", "mysql.log", "network.log", "api.log"} <= {p.name for p in logs}
    assert {p.name: found for p in logs if (found := told(p.read_bytes(), known))} == {}


def test_no_secret_is_in_a_file_that_others_can_read(cloud: Machine) -> None:
    known, planted = secrets(cloud), cloud.folder / "nova/state/run/planted"
    planted.write_bytes(b"say " + known["keystone/fernet/0"] + b"\n")
    planted.chmod(0o640)
    files = [p for top in (cloud.folder / "nova", NOVA_PY.parent / ".tool") for p in open_files(top)]
    found = {p: names for p in files if p.exists() and (names := told(p.read_bytes(), known))}
    planted.unlink()
    assert found == {planted: ["keystone/fernet/0"]}


# ---- The plugin, alone ----

# One transaction reads, another one writes, the first one writes too: as nova does all day, through oslo.db.
READS_THEN_WRITES = """
import sys, threading
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import text

facade = enginefacade.transaction_context()
facade.configure(connection=sys.argv[1])
first, second = (type("Context", (), {})() for _ in "12")
add = text("INSERT INTO numbers SELECT count(*) FROM numbers")

def write():
    with facade.writer.using(second) as session:
        session.execute(add)

other = threading.Thread(target=write)
with facade.writer.using(first) as session:
    session.execute(text("SELECT count(*) FROM numbers")).scalar()
    other.start()
    other.join(2)
    session.execute(add)
other.join()
with facade.reader.using(first) as session:
    print(*session.execute(text("SELECT n FROM numbers ORDER BY n")).scalars())
"""


# One transaction reads in a transaction of its own while it holds the lock: as placement does when it has to try again.
WRITES_AND_READS_APART = """
import sys
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import text

facade = enginefacade.transaction_context()
facade.configure(connection=sys.argv[1])
context = type("Context", (), {})()
count = lambda session: session.execute(text("SELECT count(*) FROM numbers")).scalar()
for _ in "12":
    with facade.writer.using(context) as session:
        session.execute(text("INSERT INTO numbers SELECT count(*) FROM numbers"))
        with facade.reader.independent.using(context) as apart:
            print(count(apart), count(session))
"""


def in_environment(cloud: Machine, script: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run a script with the Python, the packages and the mounts of the cloud's services."""
    line = cloud.entered("/run/nova.py/state/env/bin/python", "-c", script, url)
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def numbers(cloud: Machine) -> Iterator[str]:
    """The URL of a database with an empty table, where the cloud's processes see it."""
    folder = cloud.folder / "nova/state/numbers"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "numbers")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE numbers (n INTEGER UNIQUE)")
    yield "sqlite:////run/nova.py/state/numbers/numbers?timeout=30"
    shutil.rmtree(folder)


@pytest.mark.parametrize("plugin", [True, False])
def test_a_transaction_that_has_read_can_write(cloud: Machine, numbers: str, plugin: bool) -> None:
    """Without the plugin it cannot: that is what the plugin is for."""
    done = in_environment(cloud, READS_THEN_WRITES, numbers + "&plugin=immediate" * plugin)
    if plugin:
        assert (done.returncode, done.stdout) == (0, "0 1\n"), done.stderr
    else:
        assert done.returncode == 1
        assert "database is locked" in done.stderr


def test_a_transaction_inside_another_one_does_not_wait_for_it(cloud: Machine, numbers: str) -> None:
    """It sees what was there before the outer one, which is still at its work."""
    done = in_environment(cloud, WRITES_AND_READS_APART, numbers + "&plugin=immediate")
    assert (done.returncode, done.stdout) == (0, "0 1\n1 2\n"), done.stderr


# ---- -p ----


def answered(machine: Machine, *answers: str) -> tuple[int, str]:
    """nova.py -p install for another folder at a terminal, each question answered when it stands there."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(machine.folder)
        os.execvp("python3", ["python3", str(NOVA_PY), "-p", "install", "other"])
    said, left = "", list(answers)
    with contextlib.suppress(OSError):  # EIO: it has ended
        while some := os.read(terminal, 4096).decode():
            said += some
            if left and said.endswith(": "):
                os.write(terminal, left.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.replace("\r", "")


def test_passwords_are_asked_for_and_not_shown(cloud: Machine) -> None:
    code, said = answered(cloud, "first-password", "first-password", "", "second-one", "second-two")
    lines = ["MYSQL_PASS (nothing: generated)", "MYSQL_PASS once more", "ADMIN_PASSWORD (nothing: generated)",
             "SERVICE_PASSWORD (nothing: generated)", "SERVICE_PASSWORD once more",
             "nova.py: SERVICE_PASSWORD: that was not the same twice"]  # fmt: skip
    assert said.split("\n")[:-1] == [f"{line}: " for line in lines[:-1]] + lines[-1:]
    assert (code, (cloud.folder / "other").exists()) == (2, False)


def test_without_a_terminal_it_says_so(cloud: Machine) -> None:
    line = ["setsid", "--wait", "python3", str(NOVA_PY), "-p", "install", "other"]
    done = subprocess.run(line, cwd=cloud.folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, (cloud.folder / "other").exists()) == (2, False)
    assert done.stderr.startswith("nova.py: -p asks at a terminal, and there is none\n")
