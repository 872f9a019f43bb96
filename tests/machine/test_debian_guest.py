# SPDX-License-Identifier: Apache-2.0
"""IMAGE=debian: a guest that is told about itself by the metadata service, and one by its config drive."""

import json
import shlex
import subprocess
import time
from collections.abc import Iterator
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest

from .conftest import Machine, eventually, on

pytestmark = [on("debian"), pytest.mark.slow]

BOOT = 3000  # seconds; it takes one without KVM minutes, and beside others more of them
CONFIG = """#cloud-config
write_files: [{path: /etc/written, content: by cloud-config}]
runcmd: ["hostname >/etc/run"]
"""
SECOND_DISK = """#cloud-config
merge_how: "dict(recurse_array)+list(append)"
fs_setup: [{label: second, filesystem: ext4, device: /dev/vdb}]
mounts: [[/dev/vdb, /srv]]
"""
SCRIPT = "#!/bin/sh\nid -un >/etc/script\n"
LOOK = {
    "user": "sudo id -un",
    "hostname": "hostname",
    "written": "cat /etc/written",
    "run": "cat /etc/run",
    "script": "cat /etc/script",
    "second disk": "findmnt --noheadings --output SOURCE,FSTYPE /srv || true",
    "root": "df --block-size=1 --output=size / | tail -1",
    "links": "ip -json address",
    "routes": "ip -json route",
    "result": "cat /run/cloud-init/result.json",
    "warnings": "sudo grep -E ' - .*(WARNING|ERROR)' /var/log/cloud-init.log || true",
    "schema": "sudo cloud-init schema --system",
    "failed units": "systemctl --failed --no-legend --plain",
    "boot": "systemd-analyze",
    "memory": "free --mega",
}

Guest = dict[str, Any]


def user_data(cloud: Machine, name: str, *parts: str) -> str:
    """The option that gives an instance these parts of user data: its kind is in the first line of each."""
    whole = MIMEMultipart()
    for part in parts:
        whole.attach(MIMEText(part, "cloud-config" if part.startswith("#cloud-config") else "x-shellscript"))
    (cloud.folder / name).write_text(whole.as_string())
    return f"--user-data {cloud.folder / name}"


def debian(cloud: Machine, address: str, line: str) -> str:
    """A line in the guest, as the image's user."""
    options = "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR -oBatchMode=yes -oConnectTimeout=20"
    command = ["ssh", "-i", str(cloud.key), *shlex.split(options), f"debian@{address}", line]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=300)
    return done.stdout.strip()


def look(cloud: Machine, name: str, subnet: str) -> Guest:
    """What is seen in a guest once cloud-init is through, by a floating address of its port on this subnet."""
    began = time.monotonic()
    port = cloud.openstack(f"port list --server {name} --fixed-ip subnet={subnet}")[0]["ID"]
    address = cloud.openstack(f"floating ip create --port {port} public")["floating_ip_address"]
    eventually(f"ssh to {name}", lambda: debian(cloud, address, "true") == "", BOOT)
    reached = time.monotonic()
    eventually("cloud-init's end", lambda: "running" not in debian(cloud, address, "cloud-init status || true"), BOOT)
    seen = {what: debian(cloud, address, line) for what, line in LOOK.items()}
    print(f"{name}: ssh after {reached - began:.0f} s, cloud-init's end {time.monotonic() - reached:.0f} s later")
    print(seen["boot"], seen["memory"], sep="\n")
    return seen


@pytest.fixture(scope="module")
def guests(cloud: Machine) -> Iterator[dict[str, Guest]]:
    """`served`, with two networks and two disks; and `driven`, booted from a volume, on a network without DHCP."""
    for line in (
        "network create --mtu 1400 short",
        "subnet create --network short --subnet-range 10.20.0.0/24 --gateway none short",
        "network create still",
        "subnet create --network still --subnet-range 10.21.0.0/24 --no-dhcp still",
        "router add subnet router still",
        "flavor create --ram 256 --disk 2 least",
        "volume create --size 1 second",
        "volume create --size 2 --image debian --bootable root",
    ):
        cloud.shell(f"openstack {line}")
    for name in ("second", "root"):
        eventually(name, lambda name=name: cloud.openstack(f"volume show {name}")["status"] == "available", 600)
    create = "openstack server create --key-name mine --flavor least --wait"
    disk = "--block-device uuid=$(openstack volume show second -f value -c id),source_type=volume,destination_type=volume"
    served = user_data(cloud, "served", CONFIG, SECOND_DISK, SCRIPT)
    driven = user_data(cloud, "driven", CONFIG, SCRIPT)
    cloud.shell(f"{create} --image debian {disk} {served} --network private --network short served")
    cloud.shell(f"{create} --volume root {driven} --config-drive true --network still --network short driven")
    (private,) = (each["ID"] for each in cloud.openstack("subnet list --network private") if ":" not in each["Subnet"])
    yield {"served": look(cloud, "served", private), "driven": look(cloud, "driven", "still")}
    cloud.shell("openstack server delete --wait served driven")


BOTH = pytest.mark.parametrize("name", ["served", "driven"])


@BOTH
def test_the_key_lets_its_owner_in_who_may_sudo(guests: dict[str, Guest], name: str) -> None:
    assert guests[name]["user"] == "root"


@BOTH
def test_it_has_its_name_and_did_what_its_user_data_say(guests: dict[str, Guest], name: str) -> None:
    seen = {what: guests[name][what] for what in ("hostname", "written", "run", "script")}
    assert seen == {"hostname": name, "written": "by cloud-config", "run": name, "script": "root"}


def test_the_second_disk_has_a_file_system_and_is_mounted(guests: dict[str, Guest]) -> None:
    assert guests["served"]["second disk"].split() == ["/dev/vdb", "ext4"]
    assert guests["driven"]["second disk"] == ""


@BOTH
def test_its_root_grows_to_the_disk(guests: dict[str, Guest], name: str) -> None:
    assert int(guests[name]["root"]) > 1.8 * 2**30


@BOTH
def test_each_port_has_its_addresses_and_its_networks_mtu(cloud: Machine, guests: dict[str, Guest], name: str) -> None:
    links = {link["address"]: link for link in json.loads(guests[name]["links"])}
    ports = cloud.openstack(f"port list --server {name} --long")
    assert len(ports) == 2
    for port in ports:
        link = links[port["MAC Address"]]
        network = cloud.openstack(f"port show {port['ID']}")["network_id"]
        assert link["mtu"] == cloud.openstack(f"network show {network}")["mtu"]
        there = {each["local"] for each in link["addr_info"]}
        assert {each["ip_address"] for each in port["Fixed IP Addresses"]} <= there


def test_without_dhcp_its_address_is_its_for_ever(guests: dict[str, Guest]) -> None:
    found = [each for link in json.loads(guests["driven"]["links"]) for each in link["addr_info"]]
    (own,) = (each for each in found if each["local"].startswith("10.21.0."))
    assert not own.get("dynamic")
    assert any(way["dst"] == "default" and way["gateway"] == "10.21.0.1" for way in json.loads(guests["driven"]["routes"]))


@pytest.mark.parametrize(("name", "source"), [("served", "DataSourceOpenStack"), ("driven", "DataSourceConfigDrive")])
def test_cloud_init_found_the_source_and_no_fault(guests: dict[str, Guest], name: str, source: str) -> None:
    seen = guests[name]
    result = json.loads(seen["result"])["v1"]
    assert result["datasource"].startswith(source)
    assert (result["errors"], seen["warnings"], seen["failed units"]) == ([], "", "")
    assert "alid" in seen["schema"]
