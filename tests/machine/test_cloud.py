"""The life of one cloud, twice: from nothing to an instance that answers ssh, and back to nothing of it."""

from __future__ import annotations

import os
import re
import stat
import threading
import urllib.request
from http import HTTPStatus

import psutil
import pytest

from .conftest import USER, Machine, eventually, listener

ROUNDS = pytest.mark.parametrize("again", [False, True], ids=["first", "again"], scope="module")
pytestmark = ROUNDS


@pytest.fixture(scope="module")
def before(machine: Machine, again: bool) -> dict[str, object]:
    """The machine before the first command of the round."""
    assert not machine.ports() and not machine.processes()
    return machine.traces()


@pytest.fixture(scope="module")
def said(machine: Machine, before: dict[str, object]) -> str:
    """What run_detached said; it ended with exit code 0."""
    said = machine.nova("run_detached")
    if not machine.key.exists():
        machine.shell(f"ssh-keygen -q -t ed25519 -N '' -f {machine.key}")
    return said


@pytest.fixture(scope="module")
def one(machine: Machine, said: str) -> str:
    """An instance on `private` with a key of its own and a floating address that answers ssh: that address."""
    machine.shell(f"openstack keypair create --public-key {machine.key}.pub mine")
    machine.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --key-name mine --wait one")
    address = machine.floating("one")
    eventually("ssh to one", lambda: machine.ssh(address, "true") == "")
    return address


def test_it_says_what_is_up_and_how_long_it_took(said: str) -> None:
    assert re.search(r"The cloud is up, \d+ s", said)
    assert re.search(r"\d\.\d  Boot an instance and reach it by ssh", said)
    assert "openstack server create" in said


def test_its_secrets_are_the_callers_alone(machine: Machine, said: str) -> None:
    for name in ("novarc", "clouds.yaml", "state/passwords.json", "state/conf/nova.conf", "state/conf/my.cnf"):
        assert stat.S_IMODE(os.stat(machine.folder / "nova" / name).st_mode) == 0o600, name


def test_clouds_yaml_works_beside_novarc(machine: Machine, said: str) -> None:
    line = "unset ${!OS_*}; cd nova; openstack --os-cloud nova project list -f value -c Name"
    assert "admin" in machine.shell(line).split()


def test_flavors_networks_and_image_are_there(machine: Machine, said: str) -> None:
    flavors = {f["Name"]: f["RAM"] for f in machine.openstack("flavor list")}
    own = {"m1.tiny": 512, "m1.small": 2048, "m1.medium": 4096, "m1.large": 8192, "m1.xlarge": 16384}
    assert flavors.items() >= {**own, "m1.nano": 192, "m1.micro": 256, "cirros256": 256, "ds1G": 1024}.items()
    assert {n["Name"] for n in machine.openstack("network list")} == {"private", "public"}
    assert "ami-tty" in {i["Name"] for i in machine.openstack("image list")}
    assert not machine.openstack("server list --all-projects"), "the smoke instance is gone"


def test_apis_listen_on_host_ip_and_the_rest_on_loopback(machine: Machine, said: str) -> None:
    listening = machine.shell("ss -Hltn | awk '{print $4}'").split()
    assert not [place for place in listening if re.match(r"(0\.0\.0\.0|\*|\[::\]):(5000|877\d|9292|9696|3\d{4})$", place)]


def test_no_api_runs_as_root(machine: Machine, said: str) -> None:
    processes = machine.shell(
        "ps -eo user:32,args | grep -E 'uwsgi|mariadbd|beam.smp|nova-sch|nova-cond' | grep -vE 'grep|bash|keep'"
    )
    assert {line.split()[0] for line in processes.splitlines()} == {str(USER)}


def test_the_instance_takes_its_name_and_key_from_metadata(machine: Machine, one: str) -> None:
    assert machine.ssh(one, "hostname") == "one"
    assert machine.ssh(one, "wget -q -O - http://169.254.169.254/latest/meta-data/hostname").startswith("one")
    assert machine.ssh(one, "cat /root/.ssh/authorized_keys").split()[0] == "ssh-ed25519"


def test_the_instance_has_its_address_by_dhcp(machine: Machine, one: str) -> None:
    fixed = machine.openstack("server show one")["addresses"]["private"][0]
    assert fixed in machine.ssh(one, "ip -4 addr show dev eth0")


def test_the_instance_reaches_the_outside_through_the_host(machine: Machine, one: str) -> None:
    server = listener(machine.host_ip())
    came: list[str] = []

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"hello from outside\n")
            came.append("connected")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    assert machine.ssh(one, f"nc -w 10 {machine.host_ip()} {server.getsockname()[1]} </dev/null") == "hello from outside"
    thread.join(10)
    assert came == ["connected"]


def test_no_instance_has_a_screen_that_others_could_look_at(machine: Machine, one: str) -> None:
    guests = [line for line in machine.processes() if "qemu-system" in line]
    assert guests and not [line for line in guests if "-vnc" in line or "socket,id=charserial" in line]


def test_two_instances_reach_each_other(machine: Machine, one: str) -> None:
    machine.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --key-name mine --wait two")
    fixed = machine.openstack("server show two")["addresses"]["private"][0]
    eventually("ping from one to two", lambda: " 0% packet loss" in machine.ssh(one, f"ping -c 2 -W 2 {fixed}"))
    eventually("ssh of two from one", lambda: "SSH-2.0" in machine.ssh(one, f"nc -w 3 {fixed} 22 </dev/null"))


def test_a_second_run_is_refused_while_the_cloud_is_up(machine: Machine, one: str) -> None:
    said = machine.nova("run_detached", ok=1)
    assert "screen named 'nova' already exists!" in said and "nova.py attach" in said
    assert machine.ssh(one, "hostname") == "one", "and nothing happened to the cloud"


def test_a_dead_service_is_noted_and_comes_back(machine: Machine, said: str) -> None:
    died = machine.folder / "nova/state/run/scheduler.died"
    keeper = psutil.Process(int((machine.folder / "nova/state/run/scheduler.pid").read_text()))
    keeper.children()[0].kill()
    assert "scheduler: exit code 137" in eventually("the note of its death", lambda: died.exists() and died.read_text())
    eventually("the scheduler", lambda: "nova-scheduler" in str([c.cmdline() for c in keeper.children()]))


def test_ctrl_c_ends_a_service_and_up_arrow_starts_it_again(machine: Machine, said: str) -> None:
    pid = machine.folder / "nova/state/run/placement.pid"
    stuff = "screen -S nova -p placement -X stuff "
    machine.shell(stuff + r"$'\003'")
    eventually("the end of placement", lambda: not pid.exists())
    machine.shell(stuff + r"$'\e[A\r'")
    eventually("placement", pid.exists)
    eventually("its API", lambda: urllib.request.urlopen(f"http://{machine.host_ip()}:8778/").status == HTTPStatus.OK)


def test_terminate_leaves_no_instance_and_no_domain(machine: Machine, one: str) -> None:
    machine.nova("terminate")
    assert not machine.openstack("server list --all-projects")
    traces = machine.traces()
    assert not traces["domains"] and not traces["guests"]


def test_clean_leaves_no_process_and_no_port(machine: Machine, said: str) -> None:
    machine.nova("clean")
    assert machine.processes() == []
    assert machine.ports() == set()
    assert "nova" not in machine.shell("screen -ls || true")


def test_scrub_leaves_the_machine_as_it_was(machine: Machine, before: dict[str, object]) -> None:
    machine.nova("scrub")
    assert machine.traces() == before


def test_the_verbs_can_be_repeated(machine: Machine, before: dict[str, object]) -> None:
    for verb in ("terminate", "clean", "scrub"):
        machine.nova(verb)
    assert machine.traces() == before
