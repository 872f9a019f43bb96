"""A machine as its distribution installs it, in a folder: a root file system of debootstrap's, with processes of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

from .conftest import NOVA_PY

BASE = NOVA_PY.parent / ".tool/fresh"  # made once; a machine is a copy of it
INCLUDED = "--include=systemd,systemd-sysv,dbus,python3,ca-certificates,iproute2,procps"
# how this machine reaches its registries: the new one does as well
WAYS = ("etc/apt/sources.list", "etc/apt/sources.list.d", "etc/resolv.conf", "etc/ssl/certs", "usr/local/share/ca-certificates")
# what changes by itself; and where nova.py is, with its cloud
PASSING = ("/dev", "/proc", "/run", "/sys", "/var/log", "/root/main")


def call(*words: object) -> str:
    """A command on this machine that must work; what it said."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def make_base() -> None:
    """Debian as debootstrap makes it, of this machine's release and from where this machine's packages come."""
    if (BASE / "root/made").exists():
        return
    if not shutil.which("debootstrap"):
        call("apt-get", "-qq", "update")
        call("apt-get", "-qq", "install", "-y", "--no-install-recommends", "debootstrap")
    sources = call("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages").splitlines()
    site, release = sorted(sources, key=len)[0].split()  # NAME, not NAME-updates or NAME-security
    shutil.rmtree(BASE, ignore_errors=True)
    call("debootstrap", "--variant=minbase", INCLUDED, release, BASE, site)
    for name in WAYS:
        place = Path("/") / name
        copy = ("cp", "--recursive", "--dereference", "--no-target-directory", place, BASE / name)
        call("rm", "--recursive", "--force", BASE / name)
        call(*copy) if place.exists() else None
    (BASE / "root/made").touch()


class Fresh:
    """The new machine, with nova.py in /root/main; it shares this one's network and kernel."""

    def __init__(self, folder: Path) -> None:
        make_base()
        self.root = folder / "root"
        call("cp", "--archive", "--reflink=auto", BASE, self.root)
        call("mount", "--bind", self.root, self.root)
        for place, *how in (("dev", "--rbind", "/dev"), ("sys", "--bind", "/sys"), ("run", "-t", "tmpfs", "tmpfs")):
            call("mount", *how, self.root / place)
        files = call("git", "-c", f"safe.directory={NOVA_PY.parent}", "-C", NOVA_PY.parent, "ls-files").split()
        (self.root / "root/main").mkdir()
        for name in files:
            (place := self.root / "root/main" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(NOVA_PY.parent / name, place)

    def command(self, *words: str) -> list[str]:
        """What runs a command there."""
        own = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        return ["unshare", *own, f"--root={self.root}", "--wd=/root/main", *words]

    def run(self, *words: str) -> tuple[int, str]:
        """A command there: its exit code, and what it said."""
        options: Any = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        done = subprocess.run(self.command(*words), check=False, **options)
        return done.returncode, done.stdout

    def look(self) -> dict[str, str]:
        """Every file: its mode, owner and content."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            inside = "/" + folder.removeprefix(str(self.root)).lstrip("/")
            folders[:] = [name for name in folders if os.path.join(inside, name) not in PASSING]
            for name in (name for name in (*folders, *files) if os.path.join(inside, name) not in PASSING):
                path = Path(folder, name)
                seen = path.lstat()
                kind = path.readlink() if path.is_symlink() else ""
                text = path.read_bytes() if stat.S_ISREG(seen.st_mode) else b""
                kind = hashlib.sha256(text).hexdigest()[:12] if stat.S_ISREG(seen.st_mode) else kind
                found[os.path.join(inside, name)] = f"{seen.st_mode:o} {seen.st_uid}:{seen.st_gid} {kind}"
        return found

    def gone(self) -> None:
        """Out of the way of rmtree, which would remove this machine's devices."""
        call("umount", "--recursive", self.root)
