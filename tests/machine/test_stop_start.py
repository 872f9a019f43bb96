# SPDX-License-Identifier: Apache-2.0
"""A cloud that is stopped and started, or killed and started: everything in it is there again, and what ran runs again."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from .conftest import Machine, eventually, on
from .test_run import RUN, Terminal, terminal  # noqa: F401 (a fixture)
from .test_volumes import becomes

# The cloud that has most of what could be lost: volumes, consoles, objects, users of a directory, and an interface that it uses.
pytestmark = on("vlan")


class Inhabited:
    """What was in the cloud before it went down, and where."""

    def __init__(self, cloud: Machine) -> None:
        self.cloud = cloud
        for name in ("runs", "rests"):
            cloud.boot(name)
        self.address = cloud.floating("runs")
        self.inside("true")
        cloud.shell("openstack server stop rests")
        cloud.shell("openstack volume create --size 1 kept")
        becomes(cloud, "volume", "kept", "available")
        cloud.shell("openstack server add volume runs kept")
        self.inside("test -b /dev/vdb")
        self.inside("mke2fs /dev/vdb && mount -t ext4 /dev/vdb /mnt && echo in the volume >/mnt/file && umount /mnt")
        self.inside("echo on the disk >/root/file; sync")
        cloud.shell("openstack user create guest-of-mine --password of-my-guest --project admin --or-show")
        cloud.shell("openstack role add --user guest-of-mine --project admin member")
        (cloud.folder / "object").write_text("in the box")
        cloud.shell(f"openstack container create kept && openstack object create kept {cloud.folder}/object --name object")
        eventually("the end of `rests`", lambda: self.states() == {"runs": "ACTIVE", "rests": "SHUTOFF"})
        self.before = self.seen()

    def inside(self, line: str) -> str:
        """What a line in `runs` says, through its floating address, once that answers."""
        return str(eventually(f"{line!r} in `runs`", lambda: self.cloud.ssh(self.address, f"{line} && echo done"), 120))

    def states(self) -> dict[str, str]:
        return {row["Name"]: row["Status"] for row in self.cloud.openstack("server list") if row["Name"] in ("runs", "rests")}

    def seen(self) -> dict[str, object]:
        """All that has to be the same afterwards, as the APIs and the instance tell it."""
        cloud = self.cloud
        as_guest = "OS_USERNAME=guest-of-mine OS_PASSWORD=of-my-guest openstack token issue -f value -c user_id"
        lists = ("server", "volume", "network", "router", "floating ip", "image", "user", "keypair", "flavor", "port")
        told: dict[str, object] = {kind: cloud.openstack(f"{kind} list") for kind in lists}
        return told | {
            "the guest": cloud.shell(as_guest),
            "the directory's users": cloud.openstack("user list --domain ldap"),
            "the object": cloud.shell("openstack object save kept object --file -"),
            "on the disk": self.inside("cat /root/file"),
            "in the volume": self.inside("mount -t ext4 /dev/vdb /mnt; cat /mnt/file; umount /mnt"),
        }

    def is_all_there(self, boot: str) -> None:
        """Everything is, in its state and reachable; `runs` was booted anew; and the cloud is as usable as before."""
        assert self.cloud.nova("status")
        assert self.inside("cat /proc/sys/kernel/random/boot_id") != boot, "it ran again, from its disk"
        assert self.seen() == self.before
        assert "token" in self.cloud.shell("openstack console url show --novnc runs -f value -c url")
        assert self.cloud.openstack("ec2 credentials list")


@pytest.fixture(scope="module")
def inhabited(cloud: Machine) -> Iterator[Inhabited]:
    it = Inhabited(cloud)
    yield it
    cloud.shell("openstack server delete --wait runs rests && openstack volume delete kept")
    eventually("the volume's end", lambda: "kept" not in [row["Name"] for row in cloud.openstack("volume list")])
    cloud.shell(f"openstack floating ip delete {it.address} && openstack container delete --recursive kept")
    cloud.shell("openstack user delete guest-of-mine")


def pids(cloud: Machine) -> list[int]:
    """The processes of our cloud."""
    ours = f"{cloud.folder}/nova /run/nova.py "
    found = []
    for process in psutil.process_iter():
        try:
            if ours in Path(f"/proc/{process.pid}/mountinfo").read_text():
                found.append(process.pid)
        except OSError:
            continue
    return found


def test_stop_leaves_its_folder_and_nothing_else_and_start_brings_all_of_it_back(
    inhabited: Inhabited,
    terminal: Callable[..., Terminal],  # noqa: F811
) -> None:
    cloud, boot = inhabited.cloud, inhabited.inside("cat /proc/sys/kernel/random/boot_id")
    domains = cloud.traces()["domains"]
    cloud.nova("stop")
    assert pids(cloud) == [] and cloud.ports() == set()
    left = cloud.traces()
    assert left.pop("domains") == domains, "they are kept in its folder"
    interfaces = [name for name in left["interfaces"] if name.startswith(("br-", "br100", "ovs-", "tap"))]
    assert (interfaces, left["nova_py table"], left["loop devices"], left["guests"]) == ([], False, [], [])

    assert "it is stopped, and kept: sudo python3 nova.py start" in cloud.nova("status", ok=1)
    assert "Refusing to terminate" in cloud.nova("terminate", ok=1)
    assert "is stopped, and kept" in cloud.nova("stop")
    screen = terminal(*RUN)
    screen.wait_for("Type yes to go on", 60)
    screen.type(b"no\n")
    assert screen.end() == 1
    ((instances, volumes),) = re.findall(r" instances \((.*?)\) and \d+ volumes \((.*?)\)", " ".join(screen.said.split()))
    assert {"runs", "rests"} <= {*instances.split(", ")} and "kept" in volumes.split(", ")
    assert "nothing was changed" in screen.said

    cloud.nova("start")
    inhabited.is_all_there(boot)
    assert "already exists!" in cloud.nova("start", ok=1)
    cloud.shell("openstack server start rests")
    eventually("`rests`, which rested", lambda: inhabited.states()["rests"] == "ACTIVE")
    cloud.shell("openstack server stop rests")
    eventually("its rest", lambda: inhabited.states()["rests"] == "SHUTOFF", 90)


def test_everything_killed_at_once_is_brought_back_by_start(inhabited: Inhabited) -> None:
    cloud, boot = inhabited.cloud, inhabited.inside("cat /proc/sys/kernel/random/boot_id")
    for pid in pids(cloud):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # with the one before
            continue
    eventually("their end", lambda: pids(cloud) == [])
    assert "it is stopped, and kept: sudo python3 nova.py start" in cloud.nova("status", ok=1)
    cloud.nova("start")
    inhabited.is_all_there(boot)
