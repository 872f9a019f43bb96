# SPDX-License-Identifier: Apache-2.0
"""Users in a directory: in nova.py's own slapd on one cloud, in a 389-ds that was there before on the other."""

import json
import subprocess
import urllib.error
import urllib.request

import psutil
import pytest

from .conftest import Machine, eventually

pytestmark = pytest.mark.parametrize("cloud", ["flat", "vlan"], indirect=True, scope="session")


def known(cloud: Machine, file: str) -> dict[str, str]:
    """What the cloud has written down: settings or passwords."""
    return dict(json.loads((cloud.folder / f"nova/state/{file}.json").read_text()))


def modify(cloud: Machine, group: str, change: str, member: str = "uid=demo,ou=users") -> None:
    """Change the directory's entry of a group: `add` a member, `delete` it, or `replace` all by it."""
    tree = known(cloud, "settings")["LDAP_TREE"]
    url = known(cloud, "settings")["LDAP_URL"] or "ldap://127.0.0.1:33890"
    lines = f"dn: {group},{tree}\nchangetype: modify\n{change}: member\nmember: {member},{tree}\n"
    manager = ["-x", "-H", url, "-D", f"cn=admin,{tree}", "-w", known(cloud, "passwords")["LDAP_PASSWORD"]]
    subprocess.run(["ldapmodify", *manager], input=lines, text=True, check=True, capture_output=True)


def demo(cloud: Machine, words: str) -> str:
    """An openstack command of the directory's user."""
    return cloud.shell(f". nova/demorc && openstack {words}")


def network(cloud: Machine) -> str:
    """The network of the user's instances: the shared one where there is one, one of the user's own elsewhere."""
    if known(cloud, "settings")["NET_MAN"] == "FlatManager":
        return "private"
    demo(cloud, "network create demos")
    demo(cloud, "subnet create --network demos --subnet-range 10.77.0.0/24 demos")
    return "demos"


KEYSTONE, NOVA = ":5000/v3/auth/projects", ":8774/v2.1/servers"


def is_taken(cloud: Machine, token: str, place: str = KEYSTONE) -> bool:
    """Does keystone, or another API, take this token?"""
    asked = urllib.request.Request(f"http://{cloud.host_ip()}{place}", headers={"X-Auth-Token": token})
    try:
        return bool(urllib.request.urlopen(asked, timeout=20).status == 200)
    except urllib.error.HTTPError as error:
        assert error.code == 401
        return False


def test_the_directory_is_a_domain_of_its_own(cloud: Machine) -> None:
    users = {each["Name"]: each["ID"] for each in cloud.openstack("user list --domain ldap")}
    assert [*users] == ["demo"]
    others = {each["Name"]: each["ID"] for each in cloud.openstack("user list --domain Default")}
    assert {"admin", "demo", "nova", "neutron", "glance", "placement"} <= {*others}
    assert users["demo"] not in others.values()


def test_a_user_of_the_directory_boots_an_instance_until_disabled_there(cloud: Machine) -> None:
    boot = f"server create --image ami-tty --flavor m1.tiny --network {network(cloud)} --wait"
    it = json.loads(demo(cloud, f"{boot} -f json of-demo"))
    assert it["status"] == "ACTIVE"
    assert it["user_id"] == cloud.openstack("user show --domain ldap demo")["id"]
    assert it["project_id"] == cloud.openstack("project show --domain ldap demo")["id"]

    token = demo(cloud, "token issue -f value -c id")
    assert is_taken(cloud, token) and is_taken(cloud, token, NOVA)
    modify(cloud, "cn=enabled_users,ou=users", "delete")
    assert not is_taken(cloud, token)
    eventually("nova refuses it, too", lambda: not is_taken(cloud, token, NOVA), 15)
    with pytest.raises(AssertionError, match="HTTP 401"):
        demo(cloud, f"{boot} refused")
    modify(cloud, "cn=enabled_users,ou=users", "add")
    demo(cloud, f"{boot} again")
    names = {each["Name"] for each in cloud.openstack("server list --all-projects")}
    assert {"of-demo", "again"} <= names and "refused" not in names
    demo(cloud, "server delete --wait of-demo again")


def may(cloud: Machine) -> bool:
    """May the directory's user log in to the project?"""
    try:
        return bool(demo(cloud, "token issue -f value -c id"))
    except AssertionError as error:
        assert "HTTP 401" in str(error)
        return False


def test_who_leaves_a_group_leaves_its_project(cloud: Machine) -> None:
    token = demo(cloud, "token issue -f value -c id")
    modify(cloud, "cn=demo,ou=groups", "replace", "cn=admin")
    eventually("demo is out", lambda: not may(cloud), 15)
    assert not is_taken(cloud, token)
    modify(cloud, "cn=demo,ou=groups", "replace")
    eventually("and in again", lambda: may(cloud), 15)


def test_a_wrong_password_is_one(cloud: Machine) -> None:
    with pytest.raises(AssertionError, match="HTTP 401"):
        cloud.shell(". nova/demorc && OS_PASSWORD=another openstack token issue")


def test_a_slapd_runs_only_where_no_directory_was_there(cloud: Machine) -> None:
    ours = not known(cloud, "settings")["LDAP_URL"]
    assert ours == any(line.startswith("slapd ") for line in cloud.processes())
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == 33890]
    assert listening == (["127.0.0.1"] if ours else [])
