# SPDX-License-Identifier: Apache-2.0
"""status: what it prints, what it calls wrong, and that it only looks. What it looks at is left to tests/machine."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import nova

from .conftest import Machine

WELL: dict[str, Any] = {
    "folder": "/home/me/nova",
    "session": "nova",
    "up_since": "2026-01-02T03:04:05+00:00",
    "stopped": False,
    "windows": [{"window": "mysql", "running_since": "2026-01-02T03:04:01+00:00", "restarts": 2, "memory": 1536 << 20}],
    "apis": [{"api": "keystone", "url": "http://192.0.2.10:5000/v3", "answers_in_ms": 12}],
    "services": [{"service": f"nova-{it}", "host": "h", "state": "up"} for it in ("compute", "conductor", "scheduler")],
    "instances": [{"instance": "one", "id": "1-2", "state": "ACTIVE", "addresses": ["10.0.0.5", "10.6.0.3"]}],
    "floating_addresses": [],
}


def changed(what: str, **columns: Any) -> dict[str, Any]:
    """The same with other values in one row."""
    return {**WELL, what: [{**WELL[what][0], **columns}, *WELL[what][1:]]}


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (WELL, []),
        ({**WELL, "up_since": None, "stopped": True}, ["it is stopped, and kept: sudo python3 nova.py start"]),
        ({**WELL, "up_since": None}, ["it is not up, or not yet: sudo python3 nova.py run_detached"]),
        (changed("windows", running_since=None), ["the window mysql has no running service; it said last: no space left"]),
        (changed("apis", answers_in_ms=None), ["the API of keystone does not answer at http://192.0.2.10:5000/v3"]),
        (changed("apis", answers_in_ms=0), []),
        (changed("services", state="down"), ["nova-compute h: down"]),
        ({**WELL, "services": WELL["services"][1:]}, ["nova-compute has not reported to the API"]),
        ({**WELL, "services": "Timeout: 10 s"}, ["the APIs did not tell the services: Timeout: 10 s"]),
        (changed("instances", state="ERROR"), ["one 1-2: ERROR"]),
        (changed("instances", state="SHUTOFF"), []),
        ({**WELL, "volumes": [{"volume": "v", "id": "3", "state": "error_deleting", "size": 1}]}, ["v 3: error_deleting"]),
    ],
)
def test_what_is_not_well(cfg: nova.Settings, machine: Machine, found: dict[str, Any], wrong: list[str]) -> None:
    machine.put(nova.STATE / "log/mysql.log", "started\nno space left\n")
    assert list(nova.problems(found)) == wrong


def test_a_table_for_people(capsys: Any, cfg: nova.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nova, "look", lambda cfg: {**WELL, "problems": []})
    nova.status(cfg)
    assert capsys.readouterr().out == (
        "window  running since        restarts  memory\n"
        "mysql   2026-01-02 03:04:01  2         1,536 MiB\n\n"
        "api       url                        answers in ms\n"
        "keystone  http://192.0.2.10:5000/v3  12\n\n"
        "service         host  state\nnova-compute    h     up\nnova-conductor  h     up\nnova-scheduler  h     up\n\n"
        "instance  id   state   addresses\none       1-2  ACTIVE  10.0.0.5, 10.6.0.3\n\n"
        f"All is well: the cloud in {cfg.DIR}, session nova, up since 2026-01-02T03:04:05+00:00\n"
    )


def test_json_for_programs_and_the_exit_code(capsys: Any, cfg: nova.Settings, machine: Machine, monkeypatch: Any) -> None:
    machine.fake("mount")
    monkeypatch.setattr(nova, "look", lambda cfg: {**WELL, "problems": ["it is too warm"]})
    assert nova.main(["status", "--json", str(cfg.DIR)]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {**WELL, "problems": ["it is too warm"]}
    assert said.err == f"nova.py: the cloud in {cfg.DIR} is not well\n    | it is too warm\n"


def test_json_is_for_status_alone(cfg: nova.Settings, capsys: Any) -> None:
    assert nova.main(["clean", "--json", str(cfg.DIR)]) == 2
    assert "clean does not take" in capsys.readouterr().err


def test_a_folder_without_a_cloud(machine: Machine, capsys: Any) -> None:
    assert nova.main(["status", str(machine.path("/srv/none"))]) == 1
    assert "no cloud in" in capsys.readouterr().err
    assert not machine.path("/srv/none").exists()


def test_it_only_looks(cfg: nova.Settings, machine: Machine, capsys: Any, tmp_path: Path) -> None:
    machine.fake("mount")
    before = sorted(tmp_path.rglob("*"))
    assert nova.main(["status", str(cfg.DIR)]) == 1
    assert "it is not up, or not yet" in capsys.readouterr().err
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [machine.calls]
    assert machine.called() == [f"mount --bind {str(cfg.DIR).removeprefix(str(machine.root))} /run/nova.py"]


def test_a_window_and_its_processes(cfg: nova.Settings, machine: Machine, real: Callable[[str], str]) -> None:
    keeper = subprocess.Popen([real("bash"), "-c", f"{real('tail')} -f /dev/null & wait"])
    try:
        machine.put(nova.STATE / "run/glance.pid", f"{keeper.pid}\n")
        machine.put(nova.STATE / "run/glance.died", "once\nand again\n")
        state: dict[str, Any] = {}
        children = lambda: [child.pid for child in psutil.Process(keeper.pid).children()]
        nova.wait_for("its child", lambda: state.update(seen(*children())) or state["running_since"], 10)
        assert state["restarts"] == 2 and state["memory"] > 0
        assert seen(os.getpid())["running_since"] is None, "a process that is not of this cloud does not count"
    finally:
        for process in (*psutil.Process(keeper.pid).children(), keeper):
            process.terminate()
        keeper.wait()


def seen(*ours: int) -> dict[str, Any]:
    """What status says of the window glance, where these processes are the cloud's."""
    return nova.window_state(nova.WINDOWS["glance"], {*ours})
