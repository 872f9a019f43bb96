# SPDX-License-Identifier: Apache-2.0
"""What others' tools hold against the program (bandit) and against what uv.lock has locked (pip-audit): mended, or explained."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nova

# file, what bandit found, and why it stays; what pyproject.toml leaves out says so there
EXPLAINED = {
    (
        "nova.py",
        "B310",
    ): "URLs of uv.lock, of our own APIs, or IMAGE and an index as the user named them: by http or https",
    ("nova.py", "B608"): "SQL of a table's row of ours",
    ("conf/ami-tty/build.py", "B105"): "the test image's /etc/passwd: its user root has no password, and its console says so",
}
# the id of a vulnerability, and why it does not matter here
ACCEPTED: dict[str, str] = {}
GROUPS = (("cloud", "volumes", "swift", "unit-tests"), ("ec2",), ("tests",))  # that can be in one environment

Real = Callable[[str], str]


def test_bandit_finds_nothing_that_is_not_explained(real: Real) -> None:
    words = ["-m", "bandit", "--quiet", "-c", "pyproject.toml", "-f", "json", "-r", "nova.py", "conf", "bench", "docs"]
    real(sys.executable)
    done = subprocess.run([sys.executable, *words], cwd=nova.HERE, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["errors"] == [] and found["metrics"]["_totals"]["loc"] > 2000
    assert {(each["filename"].removeprefix("./"), each["test_id"]) for each in found["results"]} == {*EXPLAINED}


def audited(lines: str, tmp_path: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each of these packages; it asks PyPI about each."""
    wanted = tmp_path / "requirements.txt"
    wanted.write_text(lines)
    words = ["-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner=off", "-f", "json", "-r", str(wanted)]
    env = {"PATH": os.environ["PATH"], "REQUESTS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt"}  # the machine's, as uv's are
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    return list(json.loads(done.stdout)["dependencies"])


@pytest.mark.online
@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: groups[0])
def test_nothing_is_known_against_what_is_locked(real: Real, groups: tuple[str, ...], tmp_path: Path) -> None:
    uv = real(str(nova.HERE / ".tool/uv"))
    real(sys.executable)
    only = [word for group in groups for word in ("--only-group", group)]
    line = [uv, "--quiet", "--no-config", "export", "--frozen", *only]
    lines = subprocess.run(line, cwd=nova.HERE, capture_output=True, text=True, check=True).stdout
    seen = audited(lines, tmp_path)
    unknown = [each["name"] for each in seen if "skip_reason" in each]
    found = {(each["name"], each["version"], bug["id"]) for each in seen for bug in each.get("vulns", ())}
    assert {each for each in found if each[2] not in ACCEPTED} == set()
    if unknown:  # pip-audit itself says "No known vulnerabilities found" then
        pytest.skip(f"the index here tells nothing of {len(unknown)} of {len(seen)} packages: {', '.join(unknown[:5])}, ...")
