"""The tree in DIR is what runs: a line of nova's API is edited, one window started again, and the line is seen."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from .conftest import Machine, eventually, on

pytestmark = on("vlan")
WAS, IS = "2013-07-23T11:33:21Z", "2031-07-23T11:33:21Z"


def start_again(cloud: Machine, window: str) -> None:
    """Ctrl-C, up-arrow, Enter in the window."""
    pid = cloud.folder / f"nova/state/run/{window}.pid"
    was, stuff = pid.read_text(), f"screen -S nova -p {window} -X stuff "
    cloud.shell(stuff + r"$'\003'")
    eventually(f"the end of {window}", lambda: not pid.exists())
    cloud.shell(stuff + r"$'\e[A\r'")
    eventually(window, lambda: pid.exists() and pid.read_text() != was)


def versions(cloud: Machine) -> str:
    """What nova's API says of itself."""
    try:
        with urllib.request.urlopen(f"http://{cloud.host_ip()}:8774/", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:  # 300, multiple choices, is an answer
        return error.read().decode()


def test_an_edited_line_runs_when_its_window_is_started_again(cloud: Machine) -> None:
    path: Path = cloud.folder / "nova/nova/api/openstack/compute/versions.py"
    text = path.read_text()
    assert text.count(WAS) == 1
    assert WAS in versions(cloud) and IS not in versions(cloud)
    path.write_text(text.replace(WAS, IS))
    try:
        assert WAS in versions(cloud), "not before the window was started again"
        start_again(cloud, "api")
        eventually("the edited line", lambda: IS in versions(cloud))
        said = cloud.nova("branch", ok=1)
        assert "Refusing to branch (1 changes" in said and "nova/api/openstack/compute/versions.py" in said
        assert IS in path.read_text()
    finally:
        path.write_text(text)
        start_again(cloud, "api")
    eventually("the line as it was", lambda: WAS in versions(cloud))
    assert "processes of the cloud run from" in cloud.nova("branch", ok=1), "what runs is not taken away from under it"
    assert path.read_text() == text
