"""INSTANCES_PATH and LOCK_PATH below a folder that only root can enter: used, private, and given back.

That both are gone after scrub is seen where the cloud is taken down: traces (conftest.py) has what is in them.
"""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

from .conftest import GUEST_USER, USER, Machine, eventually, on

pytestmark = on("flat")

# In the cloud's mounts, as the user of its services: the lock that any of them would take, with that service's configuration.
LOCK = """
import sys
from oslo_concurrency import lockutils
from oslo_config import cfg
lockutils.set_defaults("unset")
cfg.CONF(["--config-file", sys.argv[1]], project="nova")
with lockutils.external_lock("probe", lock_file_prefix="nova-"):
    print("taken")
"""


def own(cloud: Machine, name: str) -> Path:
    """The cloud's own folder below the one that was asked for."""
    (found,) = (cloud.folder / "disks" / name).iterdir()
    assert found.name == f"{str(cloud.folder / 'nova')[1:].replace('/', '-')}-{name}"
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_instances_disk_is_there_and_goes_with_it(cloud: Machine) -> None:
    disks = own(cloud, "instances")
    assert mode(cloud.folder) == 0o700, "QEMU's user could not go through here"
    cloud.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --wait there")
    disk = disks / cloud.openstack("server show there")["id"] / "disk"
    assert disk.stat().st_size > 0 and disk.stat().st_uid == GUEST_USER
    eventually("its login", lambda: " login:" in cloud.shell("openstack console log show there"), 120)
    assert not (cloud.folder / "nova/instances" / disk.parent.name).exists(), "and nothing at the place of the default"
    cloud.shell("openstack server delete --wait there")
    eventually("the end of its folder", lambda: not disk.parent.exists())


def test_locks_are_there(cloud: Machine) -> None:
    locks, state = own(cloud, "locks"), "/run/nova.py/state"
    assert (mode(locks), locks.stat().st_uid) == (0o700, USER)
    user = ("setpriv", "--reuid=nova-py", "--regid=nova-py", "--init-groups")
    inside = cloud.entered(*user, f"{state}/env/bin/python", "-c", LOCK, f"{state}/conf/nova.conf")
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    assert done.stdout == "taken\n", done.stderr
    assert (locks / "nova-probe").exists()
    assert not [p.name for p in (cloud.folder / "nova/state/locks").iterdir()]


def test_a_path_that_cannot_work_is_refused_before_anything_is_made(cloud: Machine) -> None:
    (cloud.folder / "file").write_text("mine\n")
    for path, why in ((cloud.folder / "file/below", "is not a folder"), ("/run/nova.py/x", "must lie beside each other")):
        for name in ("INSTANCES_PATH", "LOCK_PATH"):
            said = cloud.nova("run_detached", "two", ok=2, env={name: str(path), "SCREEN_NAME": "two"})
            assert f"{name}={path}: " in said and why in said
    assert not (cloud.folder / "two").exists()
