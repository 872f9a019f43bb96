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
    "e2fsprogs": ["usr/sbin/resize2fs", "usr/sbin/mke2fs"],
    "dosfstools": ["usr/sbin/mkfs.fat"],
    "util-linux": ["usr/bin/lsblk", "usr/sbin/blkid", "usr/sbin/mkfs"],  # lsblk is called by our own
    "sudo": ["usr/bin/sudo"],
    "curl": ["usr/bin/curl"],
    "iputils-ping": ["bin/ping"],  # busybox's is for root alone
    "bash": ["bin/bash"],  # for cirros: busybox's shell takes its own ping for the one on the PATH
}
PLUGINS = {  # what the programs load when they run, and where they look for it: its folder in the root disk
    "usr/libexec/sudo/sudoers.so": "usr/libexec/sudo",
    "usr/lib/x86_64-linux-gnu/security/pam_permit.so": "usr/lib/x86_64-linux-gnu/security",
}
LINKS = {"mkfs.ext2": "mke2fs", "mkfs.ext3": "mke2fs", "mkfs.ext4": "mke2fs", "mkfs.vfat": "mkfs.fat", "ping6": "ping"}
VIRTIO_MODULES = ["crc32c_generic", "virtio_pci", "virtio_blk", "ext4", "virtio_net", "virtio_rng", "button", "evdev"]
DISK_MODULES = [  # of disks that are no virtio-blk; sd_mod asks for the checksums when it is loaded
    *("crct10dif_generic", "crc64_rocksoft_generic", "virtio_scsi", "sym53c8xx", "ahci", "ata_piix", "sd_mod"),
    *("xhci_pci", "ehci_pci", "uhci_hcd", "usb_storage", "uas"),
]
MODULES = [  # of what may be there or come once it runs
    *("sr_mod", "isofs", "vfat", "nls_ascii", "nls_cp437", "nls_iso8859_1", "nls_utf8"),
    *("8021q", "e1000", "e1000e", "8139cp"),
]
UNUSED = ("gpu", "media", "infiniband", "staging", "iio")
EXCLUDED = ["*/usr/share", "*/sound", *(f"*/drivers/{name}" for name in UNUSED)]
INIT_APPLETS = ["sh", "mount", "insmod", "cat", "sleep", "dd", "switch_root"]
SIGNED = b"~Module signature appended~\n"
DISK_SIZE = "48M"
PERMIT = "".join(f"{kind} required pam_permit.so\n" for kind in ("auth", "account", "session"))
# the password of cirros on the console, as in its own image; ssh takes none
GOCUBSGO = "$6$amitty$ZKpWTXp0T671dA2/9Dl8c/uaxhtunk419q9e5cWnwij2N9F4g8yliDlZNj.wyVTad9js42caKqPt8/3GReRuu0"
ETC = {
    "hostname": "ami-tty\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "shells": "/bin/sh\n/bin/bash\n",  # dropbear lets nobody in whose shell is not here
    "nsswitch.conf": "hosts: files dns\n",
    "filesystems": "ext4\nvfat\niso9660\n",
    "passwd": "root:x:0:0:root:/root:/bin/sh\ncirros:x:1000:1000:cirros:/home/cirros:/bin/bash\n",
    "shadow": f"root::20000:0:99999:7:::\ncirros:{GOCUBSGO}:20000:0:99999:7:::\n",
    "group": "root:x:0:\ntty:x:5:\ndisk:x:6:cirros\nsudo:x:27:cirros\ncirros:x:1000:\n",
    "sudoers": "Defaults !use_pty, !syslog, secure_path=/usr/bin\nroot, %sudo ALL=(ALL:ALL) NOPASSWD: ALL\n",
    **dict.fromkeys(("pam.d/sudo", "pam.d/sudo-i"), PERMIT),
    "issue": "ami-tty, a test image. Log in as root; on this console there is no password.\n",
    "acpi/PWRF/00000080": "#!/bin/sh\nexec /etc/rc off\n",
}


def ask(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout


def packages(kernel: str) -> list[str]:
    """The kernel's real package, the programs, and the libraries below them, by the names this release gives them."""
    real = re.findall(r"Depends: (linux-image-\S+)", ask("apt-cache", "depends", kernel))
    no = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    below = dict[str, list[str]]()
    for line in ask("apt-cache", "depends", "--recurse", *no, *PROGRAMS).splitlines():
        if not line.startswith(" "):
            needs = below.setdefault(line, [])
        elif found := re.search(r"Depends: (z?lib[^\s:]+)$", line):
            needs.append(found[1])
    wanted = list(PROGRAMS)
    for name in wanted:  # it grows; what only others need (debconf's perl) is not reached
        wanted += [need for need in below.get(name, []) if need not in wanted]
    return real[:1] + wanted


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
        options = ["--keep-directory-symlink", *(f"--exclude={pattern}" for pattern in EXCLUDED)]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as archive:
            subprocess.run(["tar", "-x", *options, "-C", tree], check=True, stdin=archive.stdout)
        if archive.returncode:
            raise subprocess.CalledProcessError(archive.returncode, archive.args)
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
            add(need.replace("-", "_"))
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


def from_tree(tree: Path, *argv: Path | str) -> list[str]:
    """The command line that runs a program of the tree with the tree's own libraries: it need not suit the host."""
    loader = tree / "lib64" / "ld-linux-x86-64.so.2"
    folders = f"{tree}/usr/lib/x86_64-linux-gnu:{tree}/usr/libexec/sudo"
    return [str(arg) for arg in (loader, "--library-path", folders, *argv)]


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


def install(source: Path, target: Path, mode: int = 0o755) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def build_initramfs(tree: Path, work: Path, image: Path) -> None:
    folder = work / "initramfs"
    for name in ("proc", "sys", "dev", "root"):
        (folder / name).mkdir(parents=True)
    install(CONF / "init", folder / "init")
    install(tree / "bin" / "busybox", folder / "bin" / "busybox")
    for name in INIT_APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    lib, virtio, disks = folder / "lib" / "modules", modules(tree, VIRTIO_MODULES), modules(tree, DISK_MODULES)
    write_modules(lib, virtio | disks)
    for name, order in (("virtio", virtio), ("disks", disks)):
        (lib / name).write_text("".join(f"{module}\n" for module in order))
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
        "etc/pam.d",
        "home",
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
        ("var/run", "../run"),
    ):
        (folder / name).symlink_to(target)
    programs = [tree / path for paths in PROGRAMS.values() for path in paths]
    for program in programs:
        where = "libexec" if program.name == "lsblk" else "bin"
        install(program, folder / "usr" / where / program.name, 0o4755 if program.name == "sudo" else 0o755)
    for plugin, where in PLUGINS.items():
        install(tree / plugin, folder / where / Path(plugin).name, 0o644)
    for library in libraries(tree, [*programs[1:], *(tree / plugin for plugin in PLUGINS)]):  # busybox is static
        install(library, folder / "usr" / "lib" / library.name)
    busybox = {name: "busybox" for name in ask(str(tree / "bin" / "busybox"), "--list").split()}
    for name, target in (busybox | LINKS).items():
        if not (folder / "bin" / name).exists():  # a program of its own does more than busybox's
            (folder / "bin" / name).symlink_to(target)
    (release,) = (path.name for path in (tree / "usr" / "lib" / "modules").iterdir())
    write_modules(folder / "lib" / "modules" / release, modules(tree, [*VIRTIO_MODULES, *DISK_MODULES, *MODULES]))
    ask(str(tree / "bin" / "busybox"), "depmod", "-b", str(folder), release)  # modprobe finds a device's driver by it
    for name, where in (("rc", "etc"), ("hotplug", "etc"), ("inittab", "etc"), ("lsblk", "usr/bin")):
        install(CONF / name, folder / where / name)
    for name, text in ETC.items():
        (folder / "etc" / name).write_text(text)
    (folder / "etc" / "acpi" / "PWRF" / "00000080").chmod(0o755)
    (folder / "etc" / "sudoers").chmod(0o440)
    (folder / "tmp").chmod(0o1777)  # on the disk, as cirros has it: clients' tests leave there what has to outlive a shelving
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
