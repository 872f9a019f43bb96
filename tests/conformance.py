# SPDX-License-Identifier: Apache-2.0
"""usage: tests/run --conformance [--dir DIR] [--smoke | --quick] [--list] [REGEX]

Run Tempest, OpenStack's own suite of tests, against a cloud of nova.py, and compare what came of
each test with tests/conformance.toml: what is expected to be skipped or to fail, and why.

  REGEX      only tests whose names match (searched, as re.search does); without it, all of them
  --smoke    only those that Tempest itself calls its smoke tests
  --quick    only those that conformance.toml names for every run of the project's tests
  --dir DIR  the cloud that is up in DIR; without it, one is made first and taken down afterwards
  --list     print the names of the tests and run none

The exit code is 0 if nothing was a surprise: no new failure, no new skip, no expected failure that
passed, no test that was lost. Tempest's configuration is written from what the cloud answers.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import datetime
import functools
import http.server
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import openstack.connection
import subunit
import testtools
from openstack.config import OpenStackConfig

HERE = Path(__file__).resolve().parent.parent
EXPECTED = HERE / "tests/conformance.toml"
RESULTS = HERE / ".conformance"
TEMPEST = Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages")
WORKERS = 2
WEB_PORT = 80  # glance fetches images from the ports 80 and 443 alone, and never from loopback

# The cloud that has what Tempest covers; whoever calls may set more, or something else.
SETTINGS = {"VOLUMES_SIZE": "20", "CONSOLES": "1", "USE_SWIFT": "1", "QUOTAS": "1"}
# Each network of a test takes a floating address for its router: 32 would not do.
SETTINGS |= {"FLOATING_RANGE": "10.6.0.0/24"}

# Flavors as DevStack gives them to Tempest: name, MiB, GiB. The smallest guests are the fastest.
FLAVORS = (("m1.nano", 192, 1), ("m1.micro", 256, 1))
IMAGE = "ami-tty"
SSH_USER = "cirros"  # may do what root may, by sudo

# What no API tells, and why it is so. True of every cloud of nova.py.
FIXED: dict[str, dict[str, Any]] = {
    "auth": {
        "use_dynamic_credentials": True,  # users and projects of its own for each class of tests
        "tempest_roles": "member",
        "admin_system": "all",  # keystone-manage bootstrap gives admin the role on the system
    },
    "compute": {
        "build_timeout": 600,  # a guest without KVM takes ten times as long
        "min_compute_nodes": 1,
    },
    "compute-feature-enabled": {
        "resize": True,
        "live_migration": False,  # one host
        "cold_migration": False,  # one host; resize stays on it
        "swap_volume": True,
        "hostname_fqdn_sanitization": True,  # nova has it since 27.0
        "attach_encrypted_volume": True,
        "change_password": False,  # needs a QEMU guest agent in the image, as on DevStack
        "personality": False,  # nova dropped injection into disks from its defaults; as on DevStack
    },
    # conf/keystone.conf.tmpl; 1: no password is remembered
    "identity": {
        "user_lockout_failure_attempts": 6,
        "user_lockout_duration": 30,
        "user_unique_last_password_count": 1,
    },
    "identity-feature-enabled": {"security_compliance": True},
    "network-feature-enabled": {
        "ipv6_subnet_attributes": True,
        "port_admin_state_change": True,
    },
    "image-feature-enabled": {"os_glance_reserved": True, "image_format_enforcement": True},
    "volume-feature-enabled": {"extend_volume_with_snapshot": True},
    "validation": {
        "run_validation": True,
        "connect_method": "floating",
        "ping_timeout": 300,
        "connect_timeout": 120,
        "ssh_timeout": 600,
    },
    "scenario": {"dhcp_client": "udhcpc"},
    "service_available": {"horizon": False},
    # oslo.policy's default, which no template of ours changes
    "enforce_scope": dict.fromkeys(("nova", "neutron", "glance", "keystone", "placement"), True),
}

STESTR = f"""[DEFAULT]
test_path = {TEMPEST}/tempest/test_discover
top_dir = {TEMPEST}
group_regex = ([^\\.]*\\.)*
"""

Sections = dict[str, dict[str, Any]]


class Outcome(NamedTuple):
    """What came of one test; `said` is the reason of a skip or the traceback of a failure."""

    test: str
    status: str  # success, skip, fail, xfail, uxsuccess
    seconds: float
    said: str = ""


# ---- Tempest's configuration: ask the cloud ----


class Cloud:
    """A cloud that is up in a folder, and what its APIs tell of it."""

    def __init__(self, folder: Path) -> None:
        """Connect as its administrator."""
        self.folder = folder
        self.windows = {row["window"] for row in status(folder)["windows"]}
        self.api = connection(folder)
        self.auth: dict[str, Any] = self.api.config.config["auth"]
        self.services = {service.type for service in self.api.identity.services()}

    def get(self, service: str, path: str, **more: Any) -> Any:
        """The JSON that a service's API answers with."""
        answer = getattr(self.api, service).get(path, **more)
        answer.raise_for_status()
        return answer.json()

    def newest_microversion(self, service: str) -> str:
        """The newest microversion that a service's API takes."""
        newest = getattr(self.api, service).get_endpoint_data().max_microversion
        return ".".join(map(str, newest))

    def traits(self) -> set[str]:
        """What placement knows that the compute host can."""
        hosts = self.get("placement", "/resource_providers")["resource_providers"]
        paths = [f"/resource_providers/{host['uuid']}/traits" for host in hosts]
        answers = [self.get("placement", path, microversion="1.6") for path in paths]
        return {trait for answer in answers for trait in answer["traits"]}


def connection(folder: Path) -> Any:
    """The SDK's connection to the cloud in a folder, whatever the caller's variables name."""
    mine = [str(folder / "clouds.yaml")]
    files = OpenStackConfig(config_files=mine, secure_files=[], load_envvars=False)
    return openstack.connection.Connection(config=files.get_one("nova"))


def status(folder: Path) -> dict[str, Any]:
    """What nova.py tells about the cloud in a folder."""
    command = ["python3", str(HERE / "nova.py"), "status", str(folder), "--json"]
    asked = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=False)
    if asked.returncode:
        sys.exit(f"conformance: the cloud in {folder} must be well first")
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


def identity(cloud: Cloud) -> Sections:
    """Who asks, and where; what keystone has."""
    auth = cloud.auth
    domains = {domain.name for domain in cloud.api.identity.domains()}
    return {
        "auth": {
            "admin_username": auth["username"],
            "admin_password": auth["password"],
            "admin_project_name": auth["project_name"],
            "admin_domain_name": auth["user_domain_name"],
        },
        "identity": {
            "uri_v3": auth["auth_url"],
            "auth_version": "v3",
            "v3_endpoint_type": "public",
        },
        "identity-feature-enabled": {"domain_specific_drivers": "ldap" in domains},
        "service_available": {
            "cinder": "block-storage" in cloud.services,
            "swift": "object-store" in cloud.services,
            "nova": "compute" in cloud.services,
            "neutron": "network" in cloud.services,
            "glance": "image" in cloud.services,
        },
    }


def compute(cloud: Cloud) -> Sections:
    """nova's versions, and what its host can, by placement's traits."""
    traits = cloud.traits()
    return {
        "compute": {"max_microversion": cloud.newest_microversion("compute")},
        "placement": {"max_microversion": cloud.newest_microversion("placement")},
        "compute-feature-enabled": {
            "vnc_console": "novnc" in cloud.windows,
            "serial_console": "serial" in cloud.windows,
            "stable_rescue": "COMPUTE_RESCUE_BFV" in traits,
            "volume_multiattach": "COMPUTE_VOLUME_MULTI_ATTACH" in traits
            and any(pool.get("multiattach") for pool in pools(cloud)),
            "interface_attach": "COMPUTE_NET_ATTACH_INTERFACE" in traits,
        },
    }


def image(cloud: Cloud) -> Sections:
    """glance's formats, and its ways to import."""
    schema = cloud.get("image", "/schemas/image")["properties"]
    methods = cloud.get("image", "/info/import")["import-methods"]["value"]
    return {
        "image": {
            "disk_formats": words(schema["disk_format"]["enum"]),
            "container_formats": words(schema["container_format"]["enum"]),
        },
        "image-feature-enabled": {"import_image": bool(methods)},
    }


def network(cloud: Cloud) -> Sections:
    """neutron's extensions, and the network that floating addresses are from."""
    public = cloud.api.network.find_network("public", ignore_missing=False)
    extensions = {extension.alias for extension in cloud.api.network.extensions()}
    return {
        "network": {"public_network_id": public.id, "floating_network_name": public.name},
        "network-feature-enabled": {
            "api_extensions": words(extensions),
            "port_security": "port-security" in extensions,
        },
    }


def pools(cloud: Cloud) -> list[dict[str, Any]]:
    """What cinder's backends tell of themselves."""
    if "block-storage" not in cloud.services:
        return []
    path = "/scheduler-stats/get_pools?detail=true"
    return [pool["capabilities"] for pool in cloud.get("block_storage", path)["pools"]]


def volume(cloud: Cloud) -> Sections:
    """cinder's extensions, its backends, and whether backups are made."""
    if not (found := pools(cloud)):
        return {}
    extensions = cloud.get("block_storage", "/extensions")["extensions"]
    services = {row["binary"] for row in cloud.get("block_storage", "/os-services")["services"]}
    names = {pool["volume_backend_name"] for pool in found}
    return {
        "volume": {
            "max_microversion": cloud.newest_microversion("block_storage"),
            "backend_names": words(names),
            "vendor_name": found[0]["vendor_name"],
            "storage_protocol": one(found[0]["storage_protocol"]),
        },
        "volume-feature-enabled": {
            "api_extensions": words(extension["alias"] for extension in extensions),
            "backup": "cinder-backup" in services,
            "multi_backend": len(names) > 1,
            "extend_attached_volume": all(pool.get("online_extend_support") for pool in found),
        },
    }


def object_storage(cloud: Cloud) -> Sections:
    """What swift tells of its middlewares."""
    if "object-store" not in cloud.services:
        return {}
    address = cloud.api.object_store.get_endpoint().partition("/v1")[0]
    info = cloud.api.session.get(f"{address}/info").json()
    digests = info.get("tempurl", {}).get("allowed_digests", ["sha256"])
    return {
        "object-storage-feature-enabled": {
            "discoverable_apis": words(set(info) - {"swift"}),
            "container_sync": "container_sync" in info,
            "object_versioning": "versioned_writes" in info,
            "tempurl_digest_hashlib": "sha256" if "sha256" in digests else digests[0],
        },
    }


def one(value: Any) -> str:
    """A capability, which may be a list of ways to say the same."""
    return str(value[0] if isinstance(value, list) else value)


def words(values: Iterable[str | None]) -> str:
    """A list, as oslo.config reads it."""
    return ",".join(sorted(value for value in values if value))


ASK: tuple[Callable[[Cloud], Sections], ...] = (
    identity,
    compute,
    image,
    network,
    volume,
    object_storage,
)


def merged(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> Sections:
    """Sections of a configuration, one laid over the other."""
    sections: Sections = {}
    for part in parts:
        for name, options in part.items():
            sections.setdefault(name, {}).update(options)
    return sections


# ---- What the tests start from: two flavors, two images ----


@contextlib.contextmanager
def prepared(cloud: Cloud) -> Iterator[Sections]:
    """Two flavors and a second image; what was made for it is removed again."""
    with contextlib.ExitStack() as made:
        flavors = [flavor(cloud, made, *row) for row in FLAVORS]
        source = cloud.api.image.find_image(IMAGE, ignore_missing=False)
        yield {
            "compute": {
                "image_ref": source.id,
                "image_ref_alt": second_image(cloud, made, source),
                "flavor_ref": flavors[0],
                "flavor_ref_alt": flavors[1],
            },
            "validation": {"image_ssh_user": SSH_USER, "image_alt_ssh_user": SSH_USER},
            "compute-feature-enabled": {"ide_bus": source.hw_machine_type != "q35"},
            "scenario": {"img_properties": ",".join(f"{k}:{v}" for k, v in boot_properties(source).items())},
        }


def flavor(cloud: Cloud, made: contextlib.ExitStack, name: str, ram: int, disk: int) -> str:
    """The id of the flavor of this name."""
    if found := cloud.api.compute.find_flavor(name):
        return str(found.id)
    new = cloud.api.compute.create_flavor(name=name, ram=ram, disk=disk, vcpus=1)
    made.callback(cloud.api.compute.delete_flavor, new)
    return str(new.id)


def boot_properties(source: Any) -> dict[str, str]:
    """What an image needs beside its disk to boot: kernel, ramdisk, command line."""
    asked = ("kernel_id", "ramdisk_id", "os_command_line", "hw_rng_model")
    found = {**source.properties, **{name: getattr(source, name, None) for name in asked}}
    return {name: str(found[name]) for name in asked if found.get(name)}


def second_image(cloud: Cloud, made: contextlib.ExitStack, source: Any) -> str:
    """The id of another image that boots: the same once more."""
    data = (cloud.folder / "images/root.img").read_bytes()
    new = cloud.api.image.create_image(
        f"{source.name}-alt",
        data=data,
        disk_format=source.disk_format,
        container_format=source.container_format,
        visibility="public",
        allow_duplicates=True,
        **boot_properties(source),
    )
    made.callback(cloud.api.image.delete_image, new)
    return str(new.id)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that prints nothing."""

    def log_message(self, *_: Any) -> None:
        """Nobody reads that."""


@contextlib.contextmanager
def served(cloud: Cloud, results: Path) -> Iterator[Sections]:
    """The image as qcow2: on a web server of this machine, for glance to fetch; and as a file, for tests that upload one.

    As it is, the root disk begins with zeros, which they take for a tar.
    """
    web = results / "web"
    web.mkdir()
    source, copy = str(cloud.folder / "images/root.img"), str(web / "image.qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, copy], check=True)
    handler = functools.partial(Quiet, directory=str(web))
    public = cloud.api.network.find_network("public", ignore_missing=False)
    host = cloud.api.network.get_subnet(public.subnet_ids[0]).gateway_ip  # this machine's own
    with http.server.ThreadingHTTPServer((host, WEB_PORT), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://{host}/image.qcow2"
        yield {
            "image": {"http_image": address, "http_qcow2_image": address},
            "scenario": {"img_file": copy, "img_disk_format": "qcow2", "img_container_format": "bare"},
        }
        server.shutdown()


# ---- Run it ----


def refuse_unknown(sections: Sections) -> None:
    """An option that this Tempest has not got would be ignored without a word."""
    rows = importlib.import_module("tempest.config").list_opts()
    known = {(str(group), option.dest) for group, options in rows for option in options}
    asked = {(name, option) for name, options in sections.items() for option in options}
    if unknown := sorted(asked - known - {("oslo_concurrency", "lock_path")}):
        sys.exit(f"conformance: Tempest has no such options: {unknown}")


def write_configuration(sections: Sections, results: Path) -> None:
    """tempest.conf, readable by nobody else, and the configuration of stestr, which runs it."""
    refuse_unknown(sections)
    own = {"log_file": "tempest.log", "log_dir": results, "debug": True}
    parser = configparser.RawConfigParser()
    for name, options in {"DEFAULT": own, **sections}.items():
        if name != "DEFAULT":
            parser.add_section(name)
        for option, value in options.items():
            parser.set(name, option, str(value).replace("$", "$$"))
    path = results / "tempest.conf"
    path.touch(mode=0o600)
    with path.open("w") as file:
        parser.write(file)
    (results / ".stestr.conf").write_text(STESTR)


def stestr(results: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """stestr in the folder of the results; it finds the configuration there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    own = {"TEMPEST_CONFIG_DIR": str(results), "TEMPEST_CONFIG": "tempest.conf"}
    command = [str(Path(sys.executable).parent / "stestr"), *arguments]
    environment = {**kept, **own, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = (results / "stestr.log").open("ab")
    return subprocess.Popen(
        command,
        cwd=results,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )


def chosen(results: Path, expected: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """The names of the tests to run."""
    stestr(results, "init").communicate()
    said = stestr(results, "list").communicate()[0].decode()
    names = re.findall(r"^tempest\.(?:api|scenario|serial_tests)\.\S+$", said, re.MULTILINE)
    if not names:
        sys.exit(f"conformance: Tempest lists no tests; see {results}/stestr.log")
    pattern = r"\[.*\bsmoke\b.*\]" if options.smoke else ""
    pattern = expected["quick"] if options.quick else pattern
    return [name for name in names if re.search(pattern, name) and re.search(options.regex, name)]


def run_tests(results: Path, names: list[str], each: Callable[[Outcome], None], workers: int = WORKERS) -> None:
    """Run tests and tell `each` what came of one as soon as it ends; the stream is kept."""
    (results / "names").write_text("\n".join(names) + "\n")
    command = ("run", "--subunit", "--concurrency", str(workers), "--load-list", "names")
    running = stestr(results, *command)
    try:
        with (results / f"subunit-{workers}").open("wb") as kept:
            read_stream(running.stdout, each, kept)
    except KeyboardInterrupt:  # its workers would go on
        os.killpg(running.pid, signal.SIGTERM)
        raise
    running.wait()


def again(results: Path, names: list[str], found: list[Outcome], expected: Mapping[str, Any]) -> list[Outcome]:
    """The outcomes, but that what failed beside others was run once more, alone: `passed alone` where it passed then."""
    failed = {each: tests_of(each, names) for each in found if verdict(each, expected) == "new failures"}
    asked = [name for name in names if any(name in tests for tests in failed.values())]
    if not asked or len(names) == 1:
        return found
    second: list[Outcome] = []
    print("\nOnce more, alone:")
    run_tests(results, asked, counted(len(asked), second), workers=1)
    passed = {each.test for each in second if each.status == "success"}
    alone = {each for each, tests in failed.items() if tests and passed.issuperset(tests)}
    outcomes = [each._replace(status="passed alone") if each in alone else each for each in failed]
    return [each for each in found if each not in failed] + outcomes


def tests_of(each: Outcome, names: list[str]) -> list[str]:
    """The tests that an outcome is of: a whole class's where that was set up or torn down; none where a worker died."""
    whole = re.fullmatch(r"(?:setUp|tearDown)Class \((.+)\)", each.test)
    return [name for name in names if (class_of(name) == whole[1] if whole else name == each.test)]


def class_of(name: str) -> str:
    """A test's class, with its module."""
    return re.split(r"\.\w+(\[|$)", name)[0]


def read_stream(stream: Any, each: Callable[[Outcome], None], kept: Any = None) -> None:
    """Read a stream of subunit to its end; tell `each` what came of every test."""

    def told(test: Mapping[str, Any]) -> None:
        if test["status"] not in ("exists", "unknown"):
            each(outcome(test))

    reader: Any = testtools.StreamToDict(told)
    if kept:
        reader = testtools.CopyStreamResult([subunit.StreamResultToBytes(kept), reader])
    reader.startTestRun()
    subunit.ByteStreamToStreamResult(stream, non_subunit_name="stdout").run(reader)
    reader.stopTestRun()


def outcome(test: Mapping[str, Any]) -> Outcome:
    """A test, as testtools tells of it."""
    details = test["details"]
    texts = [details[name].as_text() for name in ("reason", "traceback") if name in details]
    began, ended = test["timestamps"]
    seconds = (ended - began).total_seconds() if began and ended else 0.0
    return Outcome(test["id"], test["status"], seconds, "\n".join(texts).strip())


# ---- Compare it ----


class Comparison(NamedTuple):
    """Outcomes, sorted by what was expected; those of SURPRISES fail the run."""

    rows: dict[str, list[Outcome]]

    @property
    def surprises(self) -> int:
        """How many came out otherwise than expected."""
        return sum(len(self.rows[name]) for name in SURPRISES)


EXPECTABLE = ("passed", "passed alone, as expected", "skipped as expected", "failed as expected")
SURPRISES = ("new failures", "passed alone only", "new skips", "passed, expected to fail", "did not run")


def compare(found: Iterable[Outcome], names: list[str], expected: Mapping[str, Any]) -> Comparison:
    """Sort outcomes by what conformance.toml says of them; `names` were asked to run."""
    rows: dict[str, list[Outcome]] = {name: [] for name in (*EXPECTABLE, *SURPRISES)}
    for each in found:
        rows[verdict(each, expected)].append(each)
    lost = set(names) - {each.test for listed in rows.values() for each in listed}
    # A class that was skipped or failed as a whole is told of as one: setUpClass (its name).
    text = " ".join(each.test for listed in rows.values() for each in listed)
    whole = set(re.findall(r"setUpClass \((.+?)\)", text))
    ran = [name for name in lost if class_of(name) not in whole]
    rows["did not run"] = [Outcome(name, "lost", 0.0) for name in sorted(ran)]
    return Comparison(rows)


def verdict(each: Outcome, expected: Mapping[str, Any]) -> str:
    """What one outcome is, beside what conformance.toml says."""
    may_fail = any(re.search(row["test"], each.test) for row in expected.get("fail", ()))
    if each.status == "passed alone":
        known = any(re.search(row["test"], each.test) for row in expected.get("race", ()))
        return "passed alone, as expected" if known else "passed alone only"
    if each.status == "skip":
        known = any(re.search(row["says"], each.said) for row in expected.get("skip", ()))
        return "skipped as expected" if known else "new skips"
    if each.status in ("success", "xfail"):
        return "passed, expected to fail" if may_fail else "passed"
    return "failed as expected" if may_fail else "new failures"


def unneeded(found: list[Outcome], expected: Mapping[str, Any]) -> list[str]:
    """Rows of conformance.toml that were about no test; after a whole run they can go."""
    skips = [each.said for each in found if each.status == "skip"]
    tests = [each.test for each in found]
    asked = [(row["says"], skips) for row in expected.get("skip", ())]
    asked += [(row["test"], tests) for kind in ("fail", "race") for row in expected.get(kind, ())]
    return [row for row, texts in asked if not any(re.search(row, text) for text in texts)]


def last_line(said: str) -> str:
    """What a traceback ends with, or a reason."""
    return said.strip().splitlines()[-1][:300] if said.strip() else ""


def report(comparison: Comparison, found: list[Outcome], seconds: float, results: Path) -> None:
    """Print the table, the surprises, and where everything about them is."""
    with (results / "surprises.txt").open("w") as file:
        for name in SURPRISES:
            for each in comparison.rows[name]:
                print(f"\n{name}: {each.test}\n    {last_line(each.said)}")
                file.write(f"---- {name}: {each.test}\n{each.said}\n\n")
    print(f"\n{len(found)} outcomes in {seconds / 60:.1f} minutes")
    for name, listed in comparison.rows.items():
        print(f"{len(listed):6} {name}")
    for part, spent in seconds_by_part(found).items():
        print(f"{spent:8.0f} s of tests in {part}")
    print(f"\nconformance: {comparison.surprises} surprises; everything is in {results}")


def seconds_by_part(found: Iterable[Outcome]) -> Counter[str]:
    """What the tests of each part of the suite took together; two run at a time."""
    spent: Counter[str] = Counter()
    for each in found:
        part = re.search(r"tempest\.(?:api\.)?(\w+)", each.test)
        spent[part[1] if part else "others"] += round(each.seconds)
    return spent


# ---- A cloud for it ----


def nova(*arguments: str) -> None:
    """Call nova.py; it tells what it does."""
    command = ["python3", str(HERE / "nova.py"), *arguments]
    subprocess.run(command, cwd=HERE, env={**SETTINGS, **os.environ}, check=True)


@contextlib.contextmanager
def a_cloud(folder: Path | None) -> Iterator[Cloud]:
    """The cloud in a folder; or one that is made for this, and removed whatever happens."""
    if folder:
        yield Cloud(folder.resolve())
        return
    place = RESULTS / "nova"
    try:
        nova("run_detached", str(place))
        yield Cloud(place)
    finally:
        for verb in ("terminate", "clean", "scrub") if (place / "state").exists() else ():  # not where it was refused
            nova(verb, str(place))


def counted(total: int, found: list[Outcome]) -> Callable[[Outcome], None]:
    """What keeps each outcome and prints a line about it."""

    def each(one: Outcome) -> None:
        found.append(one)
        said = last_line(one.said)[:120] if one.status != "success" else ""
        line = f"[{len(found):4}/{total}] {one.status:8} {one.seconds:6.1f} s  {one.test}  {said}"
        print(line, flush=True)

    return each


def conform(cloud: Cloud, results: Path, options: argparse.Namespace) -> int:
    """Configure Tempest for a cloud, run it, compare; the exit code."""
    expected = tomllib.loads(EXPECTED.read_text())
    began = datetime.datetime.now()
    found: list[Outcome] = []
    with prepared(cloud) as start, served(cloud, results) as web:
        asked = [ask(cloud) for ask in ASK]
        own = {"oslo_concurrency": {"lock_path": results / "locks"}}
        write_configuration(merged([FIXED, *asked, start, web, own]), results)
        names = chosen(results, expected, options)
        if options.list:
            print("\n".join(names))
            return 0
        run_tests(results, names, counted(len(names), found))
        found = again(results, names, found, expected)
    comparison = compare(found, names, expected)
    seconds = (datetime.datetime.now() - began).total_seconds()
    report(comparison, found, seconds, results)
    if not (options.smoke or options.quick or options.regex):
        for row in unneeded(found, expected):
            print(f"conformance.toml has a row that was about no test: {row}")
    return 1 if comparison.surprises or not found else 0


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").partition("usage: ")[2])
    parser.add_argument("regex", nargs="?", default="")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = RESULTS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    results.mkdir(parents=True, mode=0o700)
    with a_cloud(options.dir) as cloud:
        return conform(cloud, results, options)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("conformance: interrupted")
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(f"conformance: {error}")
