# SPDX-License-Identifier: Apache-2.0
"""The network is cut while nova.py installs: for PyPI and for apt a clear error within a minute, and the next call goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

from .conftest import NOVA_PY, Machine

pytestmark = pytest.mark.slow

HINT = "check the network and the package sources, then repeat: it goes on where it stopped"
LEAF = "haproxy"  # a package that nothing else needs


def cut_off(machine: Machine, *words: str) -> str:
    """Call nova.py where there is no network but loopback; what it said within a minute."""
    inside = 'ip link set lo up && exec "$@"'
    command = ["unshare", "--net", "sh", "-c", inside, "sh", "python3", str(NOVA_PY), *words]
    env = {**os.environ, "HOST_IP": "127.0.0.1"}
    done = subprocess.run(command, cwd=machine.folder, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_apt(machine: Machine) -> None:
    said = cut_off(machine, "install", "cut")
    assert "nova.py stopped at: Make a Debian" in said and HINT in said
    machine.nova("install", "cut")
    inside = ("shell", str(machine.folder / "cut"), "dpkg")
    machine.nova(*inside, "--purge", LEAF)
    machine.nova("shell", str(machine.folder / "cut"), "apt-get", "clean")
    said = cut_off(machine, "install", "cut")
    assert "nova.py stopped at: Install 1 packages" in said and HINT in said
    began = time.monotonic()
    machine.nova("install", "cut")
    assert time.monotonic() - began < 60
    assert "install ok installed" in machine.nova(*inside, "--status", LEAF)


def test_pypi(machine: Machine) -> None:
    machine.nova("install", "cut")
    (machine.folder / "cut/state/env/made-from").unlink()
    shutil.rmtree(machine.folder / "cut/state/cache/uv")
    said = cut_off(machine, "install", "cut")
    assert "nova.py stopped at: Install OpenStack's environment" in said and HINT in said
    assert not (machine.folder / "cut/state/env/made-from").exists(), "what is half-made is made anew"
