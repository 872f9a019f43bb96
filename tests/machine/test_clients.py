# SPDX-License-Identifier: Apache-2.0
"""Sessions of the clients that people use, as they use them: each noun of `openstack` that the cloud serves, and openstacksdk."""

import json
import re
import shlex
import socket
from pathlib import Path

import pytest

from .conftest import Machine, on

pytestmark = [on("vlan"), pytest.mark.slow]

# Runs the lines of its standard input one after the other in one process, because each call of `openstack` imports for a
# second, and prints for each of them, as JSON: the line, its exit code, what it said.
DRIVER = """
import contextlib, io, json, shlex, sys, time
from openstackclient import shell

def run(words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return shell.OpenStackShell().run(words), said.getvalue()
        except SystemExit as end:
            return end.code, said.getvalue()

def wait(status, noun, name):
    deadline = time.monotonic() + 180
    while (last := run([noun, "show", name, "-f", "value", "-c", "status"])) != (0, f"{status}\\n"):
        if time.monotonic() > deadline:
            return 1, f"{name} is {last}, not {status}"
        time.sleep(0.5)
    return last

for line in sys.stdin.read().splitlines():
    first, *words = shlex.split(line)
    print(json.dumps([line, *(wait(*words) if first == "until" else run([first, *words]))]), flush=True)
"""


def session(cloud: Machine, lines: list[str]) -> list[tuple[str, int, str]]:
    """Each line with its exit code and what it said."""
    (cloud.folder / "driver.py").write_text(DRIVER)
    (cloud.folder / "lines").write_text("\n".join(lines))
    said = cloud.shell("$PWD/nova/state/client/bin/python driver.py <lines")
    return [tuple(json.loads(line)) for line in said.splitlines()]


def errors(cloud: Machine) -> dict[str, list[str]]:
    """What the windows' logs say of errors of the services' own: tracebacks and answers of 500 and more."""
    found = {}
    for log in (cloud.folder / "nova/state/log").glob("*.log"):
        wrong = r"Traceback \(most recent|\" 50\d |status: 50\d| HTTP/1.1 50\d"
        lines = [line for line in log.read_text(errors="replace").splitlines() if re.search(wrong, line)]
        if lines:
            found[log.name] = lines
    return found


def test_every_noun_of_the_openstack_command(cloud: Machine) -> None:
    text = (Path(__file__).parent / "openstack-session.txt").read_text()
    text = text.replace("HOST", socket.gethostname()).replace("KEY", str(cloud.key))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    refused = {line.removeprefix("! ").rpartition(" # ")[0]: line.rpartition(" # ")[2] for line in lines if line[0] == "!"}
    plain = [line.removeprefix("! ").partition(" # ")[0] for line in lines]
    before = errors(cloud)
    said = session(cloud, plain)
    assert [line for line, *_ in said] == plain
    wrong = [(line, text[-500:]) for line, code, text in said if code and line not in refused]
    wrong += [(line, text[-500:]) for line, code, text in said if line in refused and refused[line] not in text]
    wrong += [(line, text[-500:]) for line, _, text in said if "Traceback" in text]
    assert wrong == []
    assert errors(cloud) == before


# What a user of the SDK's cloud layer writes first.
SDK = """
import openstack
cloud = openstack.connect(cloud="devstack")
image, flavor = cloud.get_image("ami-tty"), cloud.get_flavor("m1.nano")
server = cloud.create_server("sdk", image=image, flavor=flavor, network="private", wait=True, auto_ip=True, timeout=300)
print(server.status, cloud.get_server(server.id).public_v4)
volume = cloud.create_volume(1, name="sdk", wait=True)
cloud.attach_volume(server, volume, wait=True)
cloud.detach_volume(server, volume, wait=True)
cloud.delete_volume(volume.id, wait=True)
cloud.create_container("sdk")
cloud.create_object("sdk", "one", data=b"one")
print(cloud.get_object("sdk", "one")[1])
cloud.delete_object("sdk", "one")
cloud.delete_container("sdk")
cloud.delete_server(server.id, wait=True, delete_ips=True)
print(list(cloud.compute.servers()))
"""


def test_the_sdk_as_the_user_demo(cloud: Machine, tmp_path: Path) -> None:
    script = tmp_path / "sdk.py"
    script.write_text(SDK)
    said = cloud.shell(f"$PWD/nova/state/client/bin/python {shlex.quote(str(script))}").splitlines()
    assert said[0].split()[0] == "ACTIVE"
    assert re.fullmatch(r"10\.6\.0\.\d+", said[0].split()[1])
    assert said[1] == "one"
    assert said[-1] == "[]"


def test_a_named_cloud_counts_for_more_than_the_variables_of_novarc(cloud: Machine) -> None:
    there = "cd /; openstack --os-cloud devstack token issue -f value -c project_id"
    named = cloud.shell(there)
    assert cloud.shell("cd /; OS_CLOUD=devstack openstack token issue -f value -c project_id") == named
    assert cloud.shell("openstack project show demo -f value -c id") == named
    assert cloud.shell("openstack token issue -f value -c project_id") != named


@pytest.mark.parametrize("name", ["devstack-admin", "devstack-alt", "devstack-reader", "devstack-system-admin", "nova"])
def test_each_cloud_of_clouds_yaml_logs_in(cloud: Machine, name: str) -> None:
    assert cloud.shell(f"cd /; openstack --os-cloud {name} token issue -f value -c user_id")


def test_a_reader_reads_and_changes_nothing(cloud: Machine) -> None:
    cloud.shell("openstack --os-cloud devstack-reader server list")
    with pytest.raises(AssertionError, match="403"):
        cloud.shell("openstack --os-cloud devstack-reader network create no")
