# SPDX-License-Identifier: Apache-2.0
"""libexec's scripts: the Debian in DIR by this machine's apt or by mmdebstrap, nova.py's environment, what uninstall compares.

They are the real ones, but for the places of a machine in them, which are faked, as its commands are.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import nova

from .conftest import Machine
from .test_fetch_release import program

Real = Callable[[str], str]
LIBEXEC = nova.HERE / "libexec"
KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture
def scripted(machine: Machine) -> Machine:
    """What scripts make and remove, by words that are relative, is in the test's own folder: by the real commands."""
    for name in ("mkdir", "rm", "rmdir", "env"):
        (machine.commands / name).unlink()
    return machine


def calls_of(machine: Machine) -> list[tuple[str, str]]:
    """What was called, in its order: with which configuration of apt, and its words."""
    found = []
    for record in machine.calls.read_text().split("\x1d")[:-1]:
        environment, words, _ = record.split("\x1e")
        config = dict(pair.split("=", 1) for pair in environment.split("\x1f")[:-1]).get("APT_CONFIG", "")
        found.append((config, " ".join(words.split("\x1f")[:-1]).removeprefix(f"{machine.commands}/")))
    return found


# ---- make-root ----

DEBIAN, UBUNTU = "ID=debian\nVERSION_CODENAME=bookworm\n", "ID=ubuntu\nVERSION_CODENAME=noble\n"
TARGETS = """\
bookworm http://mirror.example/debian/
bookworm-updates http://mirror.example/debian/
bookworm-security http://mirror.example/debian-security/
bookworm file:/srv/packages/
elsewhere http://elsewhere.example/
"""
APT = f"""case "$*" in
    *indextargets*) printf %s '{TARGETS}' ;;
    *download\\ debian-archive-keyring) : >debian-archive-keyring_2_all.deb ;;
    *--download-only*) dir=$(sed -n 's/^Dir::Cache "\\(.*\\)";/\\1/p' "$APT_CONFIG"); : >$dir/archives/one_1_all.deb ;;
esac"""
EXTRACT = (
    f'mkdir -p "$3/{Path(KEYRING).parent}" "$3"/usr/share/{{doc,man,common,base-passwd}}; : >"$3/{KEYRING}"'
    '; : >"$3"/usr/share/man/of-it; for name in passwd group; do echo root::0: >"$3/usr/share/base-passwd/$name.master"; done'
)


class Made:
    """What make-root made, and what it called: each with the configuration of apt that it was called with."""

    def __init__(self, machine: Machine, real: Real) -> None:
        self.machine, self.root, self.cache = machine, machine.root / "dir/root", machine.root / "dir/cache"
        self.bash = real("bash")
        self.release, self.keyring = machine.put("/etc/os-release", DEBIAN), machine.put(f"/{KEYRING}")
        for name in ("mkdir", "cat", "cp", "rm", "sed", "ln", "nproc", "xargs", "sh"):
            (machine.commands / name).symlink_to(real(name))
        machine.fake("mmdebstrap")
        machine.fake("apt-get", APT)
        machine.fake("apt-config", """echo 'Acquire::http::Proxy "http://proxy:1";'""")
        machine.fake("dpkg", "echo amd64")
        machine.fake("dpkg-deb", EXTRACT)

    def __call__(self, mirror: str = "") -> None:
        """By the words that nova.py says."""
        text, places = (LIBEXEC / "make-root").read_text(), {"/etc/os-release": self.release, f"/{KEYRING}": self.keyring}
        for place, instead in places.items():
            assert place in text
            text = text.replace(place, str(instead))
        words = [self.bash, self.machine.put("/srv/make-root", text), self.root, self.cache, mirror, "apt", "mariadb"]
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, env={"PATH": str(self.machine.commands)})

    @property
    def calls(self) -> list[str]:
        """As CONFIGURATION: COMMAND."""
        text = "\n".join(f"{config}: {words}" for config, words in calls_of(self.machine))
        return text.replace(str(self.root), "ROOT").replace(str(self.cache), "CACHE").splitlines()

    @property
    def sources(self) -> list[tuple[str, str, str]]:
        """Where the new Debian's packages come from: address, suites, keyring."""
        text = (self.root / "etc/apt/sources.list.d/debian.sources").read_text()
        form = r"Types: deb\nURIs: (.*)\nSuites: (.*)\nComponents: main\nSigned-By: (.*)\n"
        return [(uri, suites, key.replace(str(self.machine.root), "")) for uri, suites, key in re.findall(form, text)]


@pytest.fixture
def make_root(scripted: Machine, real: Real) -> Made:
    return Made(scripted, real)


def test_a_debians_own_apt_makes_a_debian_and_stays_as_it_is(make_root: Made) -> None:
    make_root()
    assert make_root.calls == [
        ": apt-get -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= indextargets"
        " --format $(RELEASE) $(REPO_URI) Created-By: Packages",
        ": apt-config dump Acquire",
        ": dpkg --print-architecture",
        "CACHE/conf: apt-get -qq update",
        "CACHE/conf: apt-get -qq autoclean",
        "CACHE/conf: apt-get -qq -y --download-only install ?essential apt mariadb",
        "CACHE/conf: dpkg-deb --extract CACHE/first/one_1_all.deb ROOT",
    ]
    config = (make_root.cache / "conf").read_text()
    assert re.findall(r'^Dir\S* "(.*)";$', config, re.M) == [
        str(make_root.root),
        f"{make_root.cache}/status",
        str(make_root.cache),
    ]
    assert not (make_root.root / "var/lib/dpkg/status").read_text() and not (make_root.cache / "status").read_text()


def test_its_packages_come_from_where_the_machines_come_from(make_root: Made) -> None:
    make_root()
    assert make_root.sources == [
        ("http://mirror.example/debian/", "trixie trixie-updates", f"/{KEYRING}"),
        ("http://mirror.example/debian-security/", "trixie-security", f"/{KEYRING}"),
    ]
    assert (make_root.root / "etc/apt/apt.conf.d/machine").read_text() == 'Acquire::http::Proxy "http://proxy:1";\n'


@pytest.mark.parametrize("release", [DEBIAN, UBUNTU], ids=["Debian", "Ubuntu"])
def test_or_from_the_mirror_that_was_chosen(make_root: Made, release: str) -> None:
    make_root.release.write_text(release)
    make_root("http://chosen.example/debian")
    assert make_root.sources[0][:2] == ("http://chosen.example/debian", "trixie trixie-updates")


def test_no_mirror_of_another_distribution_is_taken(make_root: Made) -> None:
    make_root.release.write_text(UBUNTU)
    make_root()
    assert [row[0] for row in make_root.sources] == ["http://deb.debian.org/debian", "http://deb.debian.org/debian-security"]
    assert not any("indextargets" in call for call in make_root.calls)


def test_debians_keys_come_by_the_machines_own_apt_where_they_are_not_there(make_root: Made) -> None:
    make_root.release.write_text(UBUNTU)
    make_root.keyring.unlink()
    make_root()
    assert make_root.calls[:3] == [
        "CACHE/keyring/conf: apt-get -qq update",
        "CACHE/keyring/conf: apt-get -qq download debian-archive-keyring",
        ": dpkg-deb --extract CACHE/keyring/debian-archive-keyring_2_all.deb CACHE/keyring",
    ]
    own = (make_root.cache / "keyring/conf").read_text()
    assert re.findall(r'^Dir::(\S+) "(.*)";$', own, re.M) == [
        ("State::lists", f"{make_root.cache}/keyring/lists"),
        ("Cache", f"{make_root.cache}/keyring"),
    ]
    places = {row[2] for row in make_root.sources}
    assert len(places) == 1 and places.pop().startswith("/dir/cache/keyring/")
    assert list((make_root.cache / "keyring").rglob("debian-archive-keyring.gpg"))


def test_without_apt_it_is_mmdebstraps_work(make_root: Made, machine: Machine) -> None:
    (machine.commands / "apt-get").unlink()
    make_root()
    make_root("http://chosen.example/debian")
    line = ": mmdebstrap --quiet --mode=root --variant=apt --include=apt,mariadb trixie ROOT"
    assert make_root.calls == [line, f"{line} http://chosen.example/debian"]


@pytest.mark.parametrize("apt", [True, False], ids=["apt", "mmdebstrap"])
def test_in_it_no_package_starts_a_service_and_what_is_downloaded_stays_in_the_cache(
    make_root: Made, machine: Machine, apt: bool
) -> None:
    if not apt:
        (machine.commands / "apt-get").unlink()
    make_root()
    config = (make_root.root / "etc/apt/apt.conf.d/nova-py").read_text()
    first = re.findall(r'^DPkg::Path "(/usr/local/sbin):', config, re.M)
    programs = {path.name: str(path.readlink()) for path in (make_root.root / first[0][1:]).iterdir()}
    assert programs == dict.fromkeys(("deb-systemd-helper", "deb-systemd-invoke", "invoke-rc.d", "update-rc.d"), "/usr/bin/true")
    assert f'Dir::Cache "{make_root.cache}";\n' in config and 'APT::Install-Recommends "false";\n' in config


def test_what_nobody_reads_is_neither_there_nor_comes_later(make_root: Made) -> None:
    make_root()
    share = make_root.root / "usr/share"
    assert sorted(path.name for path in share.iterdir()) == ["base-passwd", "common", "keyrings"]
    left_out = (make_root.root / "etc/dpkg/dpkg.cfg.d/nova-py").read_text().splitlines()
    assert {"path-exclude=/usr/share/doc/*", "path-exclude=/usr/share/man/*"} < {*left_out}


def test_the_clouds_users_can_come_before_the_packages(make_root: Made) -> None:
    make_root()
    assert [(make_root.root / f"etc/{name}").read_text() for name in ("passwd", "group")] == ["root::0:\n"] * 2


def test_it_ends_where_a_step_of_it_fails(make_root: Made, machine: Machine) -> None:
    machine.fake("apt-get", 'case "$*" in *update) exit 100;; esac')
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make_root()
    assert caught.value.returncode == 100 and make_root.calls[-1] == "CACHE/conf: apt-get -qq update"


# ---- make-tool ----


@pytest.mark.parametrize("kind", ["x86_64", "aarch64"])
def test_nova_pys_environment_is_made_once_by_the_uv_of_the_lock(
    scripted: Machine, real: Real, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "clone/libexec").mkdir(parents=True)
    for name in ("uv.lock", "libexec/make-tool"):
        (tmp_path / "clone" / name).write_bytes((nova.HERE / name).read_bytes())
    scripted.fake("uname", f"echo {kind}")
    scripted.fake("/srv/uv")
    scripted.fake("python", f'if [ "$1" = - ]; then cp {scripted.path("/srv/uv")} .tool/uv; else : >"$4"; fi')
    words = [real("bash"), str(tmp_path / "clone/libexec/make-tool"), "python"]
    for _ in range(2):
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, env={"PATH": f"{scripted.commands}:/usr/bin:/bin"})
        scripted.fake("python", "exit 9")  # what was made is not made again
    line, *calls = [words for _, words in calls_of(scripted) if not words.startswith("uname")]
    _, _, package, pattern, file = line.split()
    url, _ = program.locked(package, pattern)
    assert re.search(rf"/uv-[\d.]+-py3-none-manylinux\S+_{kind}\.whl$", url) and file == ".tool/uv.whl"
    assert calls[0] == "python -" and [call.split()[3] for call in calls[1:]] == ["venv", "export", "pip"]
    assert "--require-hashes" in calls[-1]


# ---- inventory ----

MOUNTINFO = "36 35 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n40 36 0:30 / /run/user/0 rw - tmpfs tmpfs rw\n"
SAYS = {
    "ip -4 -brief address": "lo  UNKNOWN  127.0.0.1/8 \neth0@if7  UP  192.0.2.10/24 metric 100 \n",
    "ip -6 -brief address show permanent": "lo  UNKNOWN  ::1/128 \n",
    "ip -4 route": "default via 192.0.2.1 dev eth0 \n",
    "ip -6 route": "default via fe80::1 dev eth0 proto ra metric 1024 expires 1790sec pref medium\n",
    "nft --stateless list ruleset": "table ip theirs {\n}\n",
    "iptables-legacy-save ": "# Generated by iptables-save at noon\n*filter\n:INPUT ACCEPT [12:3400]\nCOMMIT\n",
    "ip6tables-legacy-save ": "",
    "ss -Hltnp": 'LISTEN 0 128 127.0.0.1:25 0.0.0.0:* users:(("exim4",pid=42,fd=3))\nLISTEN 0 8 [::]:22 [::]:*\n',
}
ASKS = 'name=${0##*/} words=$*; file=SAYS/${name}-${words// /_}; [ ! -e "$file" ] || exec /bin/cat "$file"; exit 1'


class Inventory:
    """A machine with one interface and one process, 9, who called; and what libexec/inventory says of it."""

    def __init__(self, machine: Machine, real: Real) -> None:
        self.machine, self.bash, self.says = machine, real("bash"), machine.path("/srv/says")
        for name in {line.split()[0] for line in SAYS}:
            machine.fake(name, ASKS.replace("SAYS", str(self.says)))
        for line, said in SAYS.items():
            self.say(line, said)
        self.interface("eth0")
        machine.put("/proc/sys/net/ipv4/ip_forward", "0\n")
        machine.put("/proc/9/mountinfo", MOUNTINFO)
        self.namespaces("9", "machine's")
        self.namespaces("self", "cloud's")
        machine.put("/sys/kernel/mm/ksm/run", "0\n")

    def say(self, line: str, said: str) -> None:
        name, _, words = line.partition(" ")
        self.machine.put(self.says / f"{name}-{words.replace(' ', '_')}", said)

    def interface(self, name: str) -> None:
        self.machine.put(f"/sys/class/net/{name}/flags", "0x1003\n")
        for parameter, value in (("forwarding", 0), ("accept_ra", 1), ("disable_ipv6", 0)):
            self.machine.put(f"/proc/sys/net/ipv6/conf/{name}/{parameter}", f"{value}\n")

    def namespaces(self, process: str, mounts: str, network: str = "machine's") -> None:
        for name, value in (("mnt", mounts), ("net", network)):
            (link := self.machine.path(f"/proc/{process}/ns/{name}")).parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(value)

    def cloud(self, mounts: str, network: str = "machine's") -> None:
        """Process 12 has a cloud's folder at /run/nova.py."""
        self.machine.put("/proc/12/mountinfo", "36 35 8:1 /home/me/nova /run/nova.py rw - ext4 /dev/sda1 rw\n")
        self.namespaces("12", mounts, network)

    def lines(self) -> list[str]:
        text = re.sub(r"(?<!\w)/(sys|proc)/", rf"{self.machine.root}\g<0>", (LIBEXEC / "inventory").read_text())
        env = {"PATH": f"{self.machine.commands}:/usr/bin:/bin"}
        words = [self.bash, "-c", text, "inventory", "9"]
        done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.splitlines()


@pytest.fixture
def inventory(scripted: Machine, real: Real) -> Inventory:
    return Inventory(scripted, real)


def test_a_machine_is_a_line_for_each_thing(inventory: Inventory) -> None:
    assert sorted(inventory.lines()) == [
        "address  eth0@if7 192.0.2.10/24",
        "address  lo 127.0.0.1/8",
        "address  lo ::1/128",
        "interface  eth0 flags=0x1003 forwarding=0 accept_ra=1 disable_ipv6=0",
        "iptables-legacy-save  *filter",
        "iptables-legacy-save  :INPUT ACCEPT",
        "iptables-legacy-save  COMMIT",
        'listens  127.0.0.1:25 users:(("exim4"))',
        "listens  [::]:22",
        "mount  / ext4",
        "nftables  table ip theirs {",
        "nftables  }",
        "parameter  net/ipv4/ip_forward=0",
        "parameter  net/ipv6/conf/all/forwarding=-",
        "parameter  net/ipv6/conf/default/forwarding=-",
        "route  default via 192.0.2.1 dev eth0",
        "route  default via fe80::1 dev eth0 proto ra metric 1024 pref medium",
        "same-page merging  0",
    ]


def test_what_changes_by_itself_is_in_no_line(inventory: Inventory) -> None:
    before = inventory.lines()
    for line, was, now in (
        ("ip -6 route", "1790sec", "3sec"),
        ("iptables-legacy-save ", "noon\n*filter\n:INPUT ACCEPT [12:3400]", "midnight\n*filter\n:INPUT ACCEPT [99:9999]"),
        ("ss -Hltnp", "pid=42,fd=3", "pid=4711,fd=8"),
    ):
        assert was in SAYS[line]
        inventory.say(line, SAYS[line].replace(was, now))
    inventory.machine.put("/proc/9/mountinfo", MOUNTINFO + "77 36 0:31 / /run/credentials/a.service rw - tmpfs tmpfs rw\n")
    inventory.machine.put("/proc/10/mountinfo", MOUNTINFO)
    assert inventory.lines() == before


LEFT: dict[str, Callable[[Inventory], object]] = {
    "address  br-ex 10.6.0.1/27": lambda it: it.say("ip -4 -brief address", "br-ex UNKNOWN 10.6.0.1/27\n"),
    "interface  br-ex flags=0x1003 forwarding=0 accept_ra=1 disable_ipv6=0": lambda it: it.interface("br-ex"),
    "ip6tables-legacy-save  *nat": lambda it: it.say("ip6tables-legacy-save ", "*nat\n"),
    "listens  127.0.0.1:5000": lambda it: it.say("ss -Hltnp", "LISTEN 0 9 127.0.0.1:5000 0.0.0.0:*\n"),
    "loop device  {root}/sys/block/loop0/loop/backing_file:/srv/disk": lambda it: it.machine.put(
        "/sys/block/loop0/loop/backing_file", "/srv/disk\n"
    ),
    "module  openvswitch": lambda it: it.machine.path("/sys/module/openvswitch").mkdir(parents=True),
    "mount  /mnt tmpfs": lambda it: it.machine.put("/proc/9/mountinfo", "41 36 0:32 / /mnt rw - tmpfs tmpfs rw\n"),
    "network namespace  ovnmeta-1": lambda it: it.machine.put("/proc/9/root/run/netns/ovnmeta-1"),
    "nftables  table ip nova_py": lambda it: it.say("nft --stateless list ruleset", "table ip nova_py\n"),
    "parameter  net/ipv4/ip_forward=1": lambda it: it.machine.put("/proc/sys/net/ipv4/ip_forward", "1\n"),
    "process of a cloud  12": lambda it: it.cloud("another's"),
    "route  10.6.0.0/27 dev br-ex": lambda it: it.say("ip -4 route", "10.6.0.0/27 dev br-ex \n"),
    "same-page merging  1": lambda it: it.machine.put("/sys/kernel/mm/ksm/run", "1\n"),
}


@pytest.mark.parametrize("line", LEFT)
def test_what_a_cloud_could_leave_is_in_a_line(inventory: Inventory, line: str) -> None:
    leave, shown = LEFT[line], line.format(root=inventory.machine.root)
    assert shown not in inventory.lines()
    leave(inventory)
    assert shown in inventory.lines()


@pytest.mark.parametrize(("mounts", "network"), [("cloud's", "machine's"), ("another's", "a container's")])
def test_who_asks_and_what_is_in_a_container_are_left_by_no_cloud(inventory: Inventory, mounts: str, network: str) -> None:
    inventory.cloud(mounts, network)
    assert not [line for line in inventory.lines() if line.startswith("process")]
