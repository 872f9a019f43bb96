"""A machine whose owner has done what people do: a cloud comes up on it all the same, and leaves nothing.

The owner's doings are in a mount namespace, so that this machine keeps its own files: in it /etc is an overlay.
"""

from __future__ import annotations

import os
import re
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import NOVA_PY, Machine, read

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LOOPBACK = "127.7.7.53"  # as systemd-resolved has 127.0.0.53
# hosts without localhost; sudoers without includedir; a resolver that instances cannot reach, and whom that one asks; an apt
# source that is dead; folders for temporary files that hold no programs and are nobody else's; another distribution with apt,
# which has Debian's keys as its own, and in another place
WORLD = """set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {over}
mkdir {over}/etc {over}/keys {over}/work {over}/work-of-keys
mount -t overlay overlay -o lowerdir=/etc,upperdir={over}/etc,workdir={over}/work /etc
mkdir -p /run/systemd/resolve
mount -t tmpfs tmpfs /run/systemd/resolve
cp /etc/resolv.conf /run/systemd/resolve/resolv.conf
rm -f /etc/resolv.conf
echo nameserver {loopback} >/etc/resolv.conf
echo 127.0.1.1 {name} >/etc/hosts
echo 'root ALL=(ALL) ALL' >/etc/sudoers
mkdir -p /etc/apt/sources.list.d /etc/apt/keyrings
cp {keyring} /etc/apt/keyrings/own.gpg
find /etc/apt -name '*.sources' -exec sed -i 's#{keyring}#/etc/apt/keyrings/own.gpg#' {{}} +
mount -t overlay overlay -o lowerdir={keyring.parent},upperdir={over}/keys,workdir={over}/work-of-keys {keyring.parent}
rm {keyring}
rm /etc/os-release
printf 'ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n' >/etc/os-release
echo 'deb http://127.0.0.1:9/debian stable main' >/etc/apt/sources.list.d/dead.list
mount -t tmpfs -o noexec,mode=1777 tmpfs /tmp
mkdir -m 700 /tmp/mine
"""


class Relay(socketserver.BaseRequestHandler):
    """Answers a question with what `upstream` answers; who gets no answer asks again."""

    upstream = ""

    def handle(self) -> None:
        question, server = self.request
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.settimeout(5)
            asked.sendto(question, (self.upstream, 53))
            server.sendto(asked.recv(4096), self.client_address)


@pytest.fixture
def upstream() -> Iterator[str]:
    """The machine's own name server, which is what the one on LOOPBACK asks."""
    Relay.upstream = re.findall(r"^nameserver (\S+)", read("/etc/resolv.conf"), re.M)[0]
    with socketserver.ThreadingUDPServer((LOOPBACK, 53), Relay) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Relay.upstream
        server.shutdown()
        thread.join()


class World:
    """The machine as its owner has it: commands are carried out there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.over = folder, folder / "over"
        self.over.mkdir()
        self.holder = subprocess.Popen(["unshare", "--mount", "sleep", "infinity"])
        world = WORLD.format(over=self.over, loopback=LOOPBACK, name=socket.gethostname(), keyring=KEYRING)
        self.call(world, TMPDIR="/run")

    def call(self, line: str, **more: str) -> str:
        """What a line for a shell says, in the folder, with the owner's TMPDIR."""
        enter = ["nsenter", f"--target={self.holder.pid}", "--mount", f"--wd={self.folder}"]
        mine = dict.fromkeys(("TMPDIR", "TMP", "TEMP", "TEMPDIR"), "/tmp/mine")  # noqa: S108 (in there it is the owner's alone)
        env = {**os.environ, **mine, **more}
        done = subprocess.run([*enter, "bash", "-c", line], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def nova(self, words: str) -> str:
        """Call nova.py there."""
        return self.call(f"python3 {NOVA_PY} {words}")

    def changed(self) -> str:
        """Every file of /etc that is not this machine's, with what it says."""
        return self.call(f"cd {self.over}/etc && find . -type f | sort | xargs sha256sum; find . | sort")


@pytest.fixture
def world(machine: Machine) -> Iterator[World]:
    """A machine like that; it ends with the processes in it."""
    folder, places = machine.folder / "owner", (Path("/run/systemd/resolve"), Path("/run/systemd"))
    folder.mkdir()
    missing = [place for place in places if not place.exists()]
    world = World(folder)
    yield world
    if (folder / "nova/novarc").exists():
        world.nova("scrub")
    world.holder.kill()
    world.holder.wait()
    for place in missing:
        place.rmdir()


def test_a_cloud_on_it(world: World, upstream: str) -> None:
    before = world.changed()
    world.nova("run_detached")
    given = world.nova("shell ovn-nbctl --db=unix:/run/nova.py/state/ovs/db.sock list dhcp_options")
    assert upstream in given and LOOPBACK not in given
    assert world.changed() == before, "while it is up"
    world.nova("stop")
    world.call(f"echo 127.0.1.1 {socket.gethostname()}.another.test {socket.gethostname()} >/etc/hosts")
    before = world.changed()
    world.nova("start")
    world.nova("status")
    world.nova("uninstall --keep-cache")
    assert world.changed() == before
    assert world.call("ls -A /tmp") == "mine\n"
