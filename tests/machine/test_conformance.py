# SPDX-License-Identifier: Apache-2.0
"""Those of Tempest's tests that conformance.toml names for every run."""

import subprocess

from .conftest import NOVA_PY, Machine, on

pytestmark = on("vlan")


def test_tempests_quick_tests_are_no_surprise(cloud: Machine) -> None:
    words = ("--conformance", "--quick", "--dir", str(cloud.folder / "nova"))
    command = [str(NOVA_PY.parent / "tests/run"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " 0 surprises" in done.stdout
