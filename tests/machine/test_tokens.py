# SPDX-License-Identifier: Apache-2.0
"""keystone judges each request by its own token, also when many come at once."""

import concurrent.futures
import json
import urllib.error
import urllib.request
from typing import Any

from .conftest import Machine, on

pytestmark = on("vlan")

WHO = ("devstack-admin", "devstack")


def test_no_request_is_judged_by_the_token_of_another_one(cloud: Machine) -> None:
    """An application credential has the roles of the token that asks for it."""
    place = f"http://{cloud.host_ip()}:5000/v3/users"
    tokens = {name: cloud.openstack(f"--os-cloud {name} token issue") for name in WHO}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(name: str, path: str, method: str, body: Any = None) -> Any:
        token = tokens[name]
        data = json.dumps(body).encode() if body else None
        headers = {"X-Auth-Token": token["id"], "Content-Type": "application/json"}
        address = f"{place}/{token['user_id']}/application_credentials{path}"
        with direct.open(urllib.request.Request(address, data, headers, method=method), timeout=60) as answer:
            return json.loads(answer.read() or "{}").get("application_credential")

    def roles(number: int) -> tuple[str, object]:
        name = WHO[number % 2]
        try:
            made = ask(name, "", "POST", {"application_credential": {"name": f"test-{number}"}})
        except urllib.error.HTTPError as error:
            return name, error.code
        ask(name, f"/{made['id']}", "DELETE")
        return name, "admin" in [role["name"] for role in made["roles"]]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert {*pool.map(roles, range(100))} == {("devstack-admin", True), ("devstack", False)}
