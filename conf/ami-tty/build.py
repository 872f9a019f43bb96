#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build the test image ami-tty (kernel, initramfs, root disk) from packages: build.py FOLDER KERNEL-PACKAGE"""

import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONF = Path(__file__).resolve().parent
PROGRAMS = {  # package: its files that go into the root disk
    "busybox-static": ["usr/bin/busybox"],
    "dropbear-bin": ["usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/bin/dbclient"],
    "e2fsprogs": ["usr/sbin/resize2fs"],
}
BOOT_MODULES = ["virtio_pci", "virtio_blk", "ext4", "virtio_net", "virtio_rng", "button", "evdev"]
DRIVE_MODULES = ["ata_piix", "virtio_scsi", "ahci", "sr_mod", "isofs", "vfat", "nls_ascii", "nls_cp437", "nls_utf8", "8021q"]
INIT_APPLETS = ["sh", "mount", "insmod", "cat", "sleep", "dd", "switch_root"]
SIGNED = b"~Module signature appended~\n"
DISK_SIZE = "32M"
ETC = {
    "hostname": "ami-tty\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "shadow": "root::20000:0:99999:7:::\n",
    "group": "root:x:0:\ntty:x:5:\n",
    "issue": "ami-tty, a test image. Log in as root; on this console there is no password.\n",
    "acpi/PWRF/00000080": "#!/bin/sh\nexec /etc/rc off\n",
}


def ask(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout


def packages(kernel: str) -> list[str]:
    """The kernel's real package, the programs, and all libraries below them, by the names this release gives them."""
    real = re.findall(r"Depends: (linux-image-\S+)", ask("apt-cache", "depends", kernel))
    no = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    below = ask("apt-cache", "depends", "--recurse", *no, *PROGRAMS)
    return real[:1] + list(PROGRAMS) + re.findall(r"^(z?lib[^\s:]+)$", below, re.MULTILINE)


def unpack(names: list[str], work: Path) -> Path:
    """Download the packages and lay them into one tree, with /usr merged as on an installed Debian."""
    tree = work / "tree"
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    # root may do without apt's own user, who could not write into a private folder
    subprocess.run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *names], check=True, cwd=work)
    for deb in work.glob("*.deb"):
        # as dpkg-deb -x does, but bookworm's would put a folder /lib in the place of our link
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", tree], check=True, input=data)
    return tree


def modules(tree: Path, wanted: list[str]) -> dict[str, bytes]:
    """The modules and what they depend on, uncompressed, in the order to load them.

    What the kernel has built in has no file and is left out, and so is what this release's kernel lacks (ahci on 12).
    """
    files = {path.name.split(".")[0].replace("-", "_"): path for path in tree.glob("usr/lib/modules/**/*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in files:
            return
        data = files[name].read_bytes()
        data = unsigned(lzma.decompress(data) if files[name].suffix == ".xz" else data)
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for need in needs[1].decode().split(",") if needs else []:
            add(need)
        found[name] = data

    for name in wanted:
        add(name)
    return found


def unsigned(module: bytes) -> bytes:
    """Without Debian's signature, which nobody asks for here, and which takes an emulated processor long to look at."""
    if not module.endswith(SIGNED):
        return module
    size = int.from_bytes(module[-len(SIGNED) - 4 : -len(SIGNED)], "big")  # struct module_signature: 12 bytes, its size last
    return module[: -len(SIGNED) - 12 - size]


def write_modules(folder: Path, found: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in found.items():
        (folder / f"{name}.ko").write_bytes(data)
    (folder / "order").write_text("".join(f"{name}\n" for name in found))


def from_tree(tree: Path, *argv: Path | str) -> list[str]:
    """The command line that runs a program of the tree with the tree's own libraries: it need not suit the host."""
    loader = tree / "lib64" / "ld-linux-x86-64.so.2"
    return [str(arg) for arg in (loader, "--library-path", tree / "usr" / "lib" / "x86_64-linux-gnu", *argv)]


def libraries(tree: Path, programs: list[Path]) -> set[Path]:
    """The shared libraries the programs load, as their own loader finds them."""
    said = "".join(ask(*from_tree(tree, "--list", program)) for program in programs)
    return {Path(name) for name in re.findall(rf"{re.escape(str(tree))}/\S+\.so\S*", said)}


def write_initramfs(folder: Path, image: Path) -> None:
    """An uncompressed cpio archive ("newc"), which takes QEMU less time than gzip; all of it belongs to root."""
    entries = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        entries.append((str(path.relative_to(folder)), mode, data))
    with image.open("wb") as out:
        for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
            fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
            header = "070701" + "".join(f"{field:08x}" for field in fields) + name + "\0"
            for part in (header.encode(), data):
                out.write(part + bytes(-len(part) % 4))


def install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def build_initramfs(tree: Path, work: Path, image: Path) -> None:
    folder = work / "initramfs"
    for name in ("proc", "sys", "dev", "root"):
        (folder / name).mkdir(parents=True)
    install(CONF / "init", folder / "init")
    install(tree / "bin" / "busybox", folder / "bin" / "busybox")
    for name in INIT_APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    write_modules(folder / "lib" / "modules", modules(tree, BOOT_MODULES))
    write_initramfs(folder, image)


def build_root(tree: Path, work: Path, image: Path) -> None:
    folder = work / "root"
    for name in (
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "mnt",
        "root",
        "var",
        "etc/dropbear",
        "etc/acpi/PWRF",
        "usr/bin",
        "usr/lib",
    ):
        (folder / name).mkdir(parents=True)
    for name, target in (
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib"),
        ("usr/sbin", "bin"),
    ):
        (folder / name).symlink_to(target)
    programs = [tree / path for paths in PROGRAMS.values() for path in paths]
    for program in programs:
        install(program, folder / "usr" / "bin" / program.name)
    for library in libraries(tree, programs[1:]):  # busybox is static
        install(library, folder / "usr" / "lib" / library.name)
    for name in ask(str(tree / "bin" / "busybox"), "--list").split():
        if name != "busybox":
            (folder / "bin" / name).symlink_to("busybox")
    write_modules(folder / "lib" / "modules", modules(tree, DRIVE_MODULES))
    install(CONF / "rc", folder / "etc" / "rc")
    install(CONF / "inittab", folder / "etc" / "inittab")
    for name, text in ETC.items():
        (folder / "etc" / name).write_text(text)
    (folder / "etc" / "acpi" / "PWRF" / "00000080").chmod(0o755)
    image.unlink(missing_ok=True)
    as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]  # whoever builds it, the files are root's
    mke2fs = from_tree(tree, tree / "sbin" / "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "ami-tty")
    env = {**os.environ, "MKE2FS_CONFIG": str(tree / "etc" / "mke2fs.conf")}
    subprocess.run([*as_root, *mke2fs, "-d", folder, image, DISK_SIZE], check=True, stdout=subprocess.DEVNULL, env=env)


def main(out: Path, kernel: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ami-tty-") as name:
        work = Path(name)
        tree = unpack(packages(kernel), work)
        shutil.copyfile(next((tree / "boot").glob("vmlinuz-*")), out / "vmlinuz")
        build_initramfs(tree, work, out / "initrd")
        build_root(tree, work, out / "root.img")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
