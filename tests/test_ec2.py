# SPDX-License-Identifier: Apache-2.0
"""The EC2 API on the faked machine: what it brings, where it is put, and what it cannot do without."""

from pathlib import Path

import pytest

import nova

from .conftest import Machine


def test_without_volumes_it_is_refused() -> None:
    with pytest.raises(nova.Failure, match=r"^USE_EC2=1: ec2-api asks for volumes .*; set VOLUMES_SIZE, in GiB$") as caught:
        nova.settings_from({"USE_EC2": "1"})
    assert caught.value.code == 2


def test_what_it_brings(cfg: nova.Settings) -> None:
    assert nova.services(nova.replace(cfg, USE_EC2=True)).keys() - nova.services(cfg).keys() == {"ec2"}
    others = [each for name, each in nova.SERVICES.items() if name != "ec2"]
    assert [each for each in others if "ec2" in str(each)] == []


def test_it_has_an_environment_of_its_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        nova, "uv", lambda *words, **_: done.append((words[0], *(word for word in words if isinstance(word, Path))))
    )
    monkeypatch.setattr(nova, "compile_python", lambda *folders: done.append(("compile", *folders)))
    for place in (nova.ENV, nova.EC2):
        (place / "lib/python3.11/site-packages").mkdir(parents=True)
    lists = nova.STATE / "cache/env.txt"
    nova.add_group("volumes", nova.ENV)
    assert done == [("export", lists), ("pip", nova.ENV, lists), ("compile", nova.ENV / "lib/python3.11/site-packages")]
    done.clear()
    nova.add_group("ec2", nova.EC2)
    assert done[0] == ("venv", nova.EC2)
    assert {row[1] for row in done if row[0] == "pip"} == {nova.EC2}
    assert done[-1] == ("compile", nova.EC2 / "lib/python3.11/site-packages")


def test_its_database_is_made_by_its_own_environment(cfg: nova.Settings) -> None:
    assert nova.SERVICES["ec2"].databases == ["ec2api"]
    program = nova.render(nova.SERVICES["ec2"].fill[0], cfg).split()[0]
    assert nova.ENV / "bin" / program == nova.EC2 / "bin/ec2-api-manage"
