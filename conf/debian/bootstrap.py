#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build the image debian (kernel, initramfs, root disk) from packages: bootstrap.py FOLDER KERNEL-PACKAGE"""

import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

CONF = Path(__file__).resolve().parent
PACKAGES = (
    *("systemd-sysv", "libpam-systemd", "dbus", "systemd-resolved", "initramfs-tools", "e2fsprogs"),
    *("cloud-init", "isc-dhcp-client", "openssh-server", "sudo", "netbase", "ca-certificates"),
    *("iproute2", "iputils-ping", "less"),
)
# Background work takes an emulated processor longer than what its user asked for.
UNUSED = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer"
DISK_SIZE = "1G"  # cloud-init grows the file system to the flavor's disk


class Source(NamedTuple):
    """What apt knows of a source of packages."""

    origin: str
    uri: str
    suite: str
    component: str
    key: str


def ask(*argv: str) -> str:
    """What a command says; it must not fail."""
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def sources() -> list[Source]:
    """The sources that apt has here, in its order."""
    form = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
    said = ask("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    return [Source(*line.split("|", 4)) for line in dict.fromkeys(said.splitlines())]


def sources_list(found: list[Source]) -> str:
    """Debian's own among them, as a sources.list; a key that is no file is one of the default keyring's."""
    lines = []
    for source in found:
        if source.origin == "Debian":
            key = f"[signed-by={source.key}] " if source.key.startswith("/") else ""
            lines.append(f"deb {key}{source.uri} {source.suite} {source.component}\n")
    if not lines:
        sys.exit("apt has no source of Debian's packages on this machine")
    return "".join(lines)


def hooks(work: Path) -> dict[str, list[str]]:
    """What is done in the new Debian, and when: shell lines, with its folder as $1."""
    ways = '"$1/etc/apt/apt.conf.d/99ways"'
    return {
        "setup": [f"cp {work}/ways {ways}"],
        "essential": [f'cp --recursive --no-target-directory {CONF}/etc "$1/etc"'],
        "customize": [
            f'chroot "$1" systemctl --quiet disable {UNUSED}',
            'chroot "$1" systemctl --quiet enable systemd-networkd systemd-resolved',
            'ln --symbolic --force ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"',
            f'rm {ways} "$1"/etc/ssh/ssh_host_*',  # each instance makes its own
            ': >"$1/etc/machine-id"',
            # or the first boot would compile what the packages have just compiled: systemd-update-done.service(8)
            'touch "$1/etc/.updated" "$1/var/.updated"',
        ],
    }


def bootstrap(tree: Path, work: Path, kernel: str) -> None:
    """A whole Debian in the folder `tree`, from the sources and by the ways (proxies) of this machine's apt."""
    (work / "sources.list").write_text(sources_list(sources()))
    (work / "ways").write_text(ask("apt-config", "dump", "Acquire"))
    options = [f"--{when}-hook={line}" for when, lines in hooks(work).items() for line in lines]
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory", *options]
    argv += [f"--include={','.join([*PACKAGES, kernel])}", "", str(tree), str(work / "sources.list")]
    # the machine's apt configuration is not the new Debian's
    env = {name: value for name, value in os.environ.items() if name != "APT_CONFIG"}
    subprocess.run(argv, check=True, env=env)


def unpacked(initramfs: bytes) -> bytes:
    """An initramfs without compression: QEMU loads more bytes sooner than an emulated processor unpacks them.

    Debian 13 puts an archive of the modules, which are compressed by themselves, before the compressed one.
    """
    compressed = initramfs.rpartition(b"TRAILER!!!")[2].lstrip(b"\0")
    return initramfs.removesuffix(compressed) + gzip.decompress(compressed)


def build_disk(tree: Path, work: Path, image: Path) -> None:
    """A file system without partitions, as qcow2."""
    disk = str(work / "root.img")
    mke2fs = ["mke2fs", "-q", "-t", "ext4", "-m", "1", "-L", "debian", "-d", str(tree), disk, DISK_SIZE]
    subprocess.run(mke2fs, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, image], check=True)


def main(out: Path, kernel: str) -> None:
    """Make vmlinuz, initrd and root.qcow2 in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="debian-") as name:
        work, tree = Path(name), Path(name) / "tree"
        bootstrap(tree, work, kernel)
        boot = tree / "boot"
        shutil.copyfile(next(boot.glob("vmlinuz-*")), out / "vmlinuz")
        (out / "initrd").write_bytes(unpacked(next(boot.glob("initrd.img-*")).read_bytes()))
        build_disk(tree, work, out / "root.qcow2")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
