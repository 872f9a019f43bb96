# SPDX-License-Identifier: Apache-2.0
"""bench/bench.py: what it reads from nova.log, its tables, its pictures."""

import importlib
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

import nova

from .test_verbs import SESSION, Fake

# Of nova.log: an earlier command's services, two steps side by side, several windows, one that nobody asks.
LOG = """\
2026-11-22 21:38:19,900    1.0 s  Fetch nova's source
2026-11-22 21:38:19,950    1.1 s  Put it into /somewhere/nova
2026-11-22 21:38:19,960   keystone: ready after 2.2 s
2026-11-22 21:38:20,000    1.2 s  Start MariaDB & RabbitMQ
2026-11-22 21:38:20,010 + screen -c /x/screenrc -d -m -S nova -t test bash --rcfile /x -i
2026-11-22 21:38:20,020 screen: ready after 0.0 s
2026-11-22 21:38:20,100 + screen -S 4487.nova -X screen -t mysql sh /run/nova.py/state/run/mysql.rc
2026-11-22 21:38:20,200   + screen -S 4487.nova -X screen -t rabbit sh /run/nova.py/state/run/rabbit.rc
2026-11-22 21:38:20,600 mysql (/run/nova.py/state/mysql/sock): ready after 0.4 s
2026-11-22 21:38:21,000    2.2 s  Start the APIs
2026-11-22 21:38:21,100 ? screen -ls
2026-11-22 21:38:21,500 + screen -S 4487.nova -X screen -t conductor sh /run/nova.py/state/run/conductor.rc
2026-11-22 21:38:21,750 + screen -S 4487.nova -X screen -t api sh /run/nova.py/state/run/api.rc
forgiven: modprobe openvswitch
  ended with exit code 1 | 12.3 s  no step
2026-11-22 21:38:23,000 api (http://192.0.2.2:8774/): ready after 1.1 s
2026-11-22 21:38:24,000 rabbit (127.0.0.1:35672): ready after 0.0 s
2026-11-22 21:38:24,000
Seconds each step took (some went on side by side):
2026-11-22 21:38:24,000      0.2  Fetch nova's source
2026-11-22 21:38:24,000      0.3  Put it into /somewhere/nova
2026-11-22 21:38:24,000      0.6  Start MariaDB & RabbitMQ
2026-11-22 21:38:24,000      2.5  Start the APIs
2026-11-22 21:38:24,000
The cloud is up, 5 s after it was asked for.
"""
SERVICES = {"mysql": (0.1, 0.6), "rabbit": (0.2, 4.0), "conductor": (1.5, 3.5), "api": (1.75, 3.0)}  # since 21:38:20
STEPS = {"Fetch nova's source": 0.2, "Put it into DIR": 0.3, "Start MariaDB & RabbitMQ": 0.6, "Start the APIs": 2.5}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(nova.HERE / "bench")
    return importlib.import_module("bench")


@pytest.fixture
def report(bench: ModuleType) -> ModuleType:
    return importlib.import_module("report")


@pytest.fixture
def start(report: ModuleType) -> Any:
    began = min(bar.begin for bar in report.bars(LOG))
    return report.Start(began - 1, began + 5, LOG)


def test_a_service_lasts_from_its_window_until_it_answers_or_to_the_end_of_its_step(report: ModuleType) -> None:
    bars = report.bars(LOG)
    zero = next(bar.begin for bar in bars if bar.name == "Start MariaDB & RabbitMQ")
    found = {bar.name: (bar.begin - zero, bar.end - zero) for bar in bars if bar.kind == "service"}
    assert found.keys() == SERVICES.keys()
    assert [found[name] for name in SERVICES] == [pytest.approx(when, abs=0.001) for when in SERVICES.values()]
    assert bars == sorted(bars, key=lambda bar: bar.begin)


def test_a_host_of_scale_runs_what_the_window_of_the_cloud_s_own_runs(bench: ModuleType, cfg: nova.Settings, fake: Fake) -> None:
    fake("screen", SESSION)
    nova.open_windows(cfg, [nova.WINDOWS["compute"]])
    window = (nova.STATE / "run/compute.rc").read_text()
    assert bench.command_of(window) == nova.render(nova.WINDOWS["compute"].line, cfg)


def test_a_step_takes_what_the_log_says_at_its_end(report: ModuleType, start: Any) -> None:
    assert report.phases(start) == pytest.approx({**STEPS, report.ALL: 6})
    assert report.until(start, "Start the APIs") == pytest.approx(1 + 1.1 + 2.5)


def test_a_step_that_is_not_told_of_is_an_error(report: ModuleType, start: Any) -> None:
    with pytest.raises(RuntimeError, match="no step 'Start it'"):
        report.until(start, "Start it")


def test_a_log_that_was_cut_off_ends_where_it_ends(report: ModuleType) -> None:
    bars = report.bars(LOG.partition("2026-11-22 21:38:23")[0])
    assert {bar.name: round(bars[-1].begin - bar.end, 3) for bar in bars if bar.kind == "step"} == dict.fromkeys(STEPS, 0)
    assert {bar.name for bar in bars if bar.kind == "service"} == SERVICES.keys()


def test_a_log_of_nothing_is_nothing(report: ModuleType) -> None:
    assert report.bars("") == []


def drawn(svg: str) -> ElementTree.Element:
    assert "url(" not in svg and "href" not in svg  # it fetches nothing
    return ElementTree.fromstring(svg)  # noqa: S314 (our own)


def test_the_timeline_has_a_bar_for_each_step_and_each_service_in_the_picture(report: ModuleType, start: Any) -> None:
    root = drawn(report.timeline(start))
    wide, high = map(float, root.attrib["viewBox"].split()[2:])
    for kind, names in (("service", SERVICES), ("step", STEPS)):
        rects = [each for each in root.iter() if each.tag.endswith("rect") and each.attrib["class"] == kind]
        assert {"".join(each.itertext()) for each in rects} >= names.keys()
        assert len(rects) == len(names) + 1  # the legend's
        for each in rects:
            assert 0 <= float(each.attrib["x"]) <= float(each.attrib["x"]) + float(each.attrib["width"]) <= wide
            assert 0 <= float(each.attrib["y"]) < high
    words = ["".join(each.itertext()) for each in root.iter() if each.tag.endswith("text")]
    assert {*SERVICES, *STEPS, "0 s", "6 s"} <= {*words}


@pytest.mark.parametrize("seconds", [0.2, 7, 45, 3000])
def test_its_scale_fits_short_and_long_ones(report: ModuleType, start: Any, seconds: float) -> None:
    longer = start._replace(done=start.called + seconds)
    marks = [each.text for each in drawn(report.timeline(longer)).iter() if (each.text or "").endswith(" s")]
    assert 1 <= len(marks) <= 13


def test_the_plots_have_a_point_and_a_number_for_each_count(report: ModuleType) -> None:
    booted = [[1, 5.0, 5.0, 900.0], [5, 12.5, 2.5, 910.0], [40, 100.0, 2.52, 990.0]]
    hosts = [[10, 12.0, 1.2, 31.0], [100, 130.0, 1.3, 0.0]]
    root = drawn(report.plots(booted, hosts, [[100, 40.0, 0.4], [900, 350.0, 0.39]]))
    assert sum(each.get("class") == "point" for each in root.iter()) == len(booted + hosts)
    words = "|".join(each.text or "" for each in root.iter())
    for number in ("2.52", "31", "40", "instances on 100 hosts: 100: 0.40 s each; 900: 0.39 s each"):
        assert number in words


def test_the_tables_have_medians_beside_goals(bench: ModuleType) -> None:
    rows = [row for row in bench.ROWS if row.name in ("memory", "clean")]
    found = [{"memory": 0.9, "clean": 1.0}, {"memory": 0.95, "clean": 9.0}, {"memory": 2.0, "clean": 1.5}]
    assert bench.table_of_rows(rows, found).splitlines() == [
        "| what | median of 3 | goal |",
        "| --- | --- | --- |",
        "| memory (PSS) of all processes of the idle control plane | 0.95 GB | 0.96 GB |",
        "| clean | 1.5 s | 2 s |",
    ]


def test_the_table_of_steps_has_those_that_every_cloud_had(report: ModuleType) -> None:
    warm = [{"one": 1.0, report.ALL: 5.0}, {"two": 9.0, "one": 2.0, report.ALL: 7.0}]
    assert report.table_of_steps({}, warm).splitlines() == [
        "| step | median of 2, s |",
        "| --- | --- |",
        "| one | 1.5 |",
        "| run_detached, all of it | 6.0 |",
    ]
    assert report.table_of_steps({"three": 3.0, report.ALL: 60.0}, warm).splitlines() == [
        "| step | cold, s | median of 2, s |",
        "| --- | --- | --- |",
        "| three | 3.0 | - |",
        "| one | - | 1.5 |",
        "| run_detached, all of it | 60.0 | 6.0 |",
    ]


def test_each_row_has_a_name_of_its_own(bench: ModuleType) -> None:
    assert len({row.name for row in bench.ROWS}) == len(bench.ROWS) == 11


def test_the_steps_that_are_measured_are_nova_pys() -> None:
    source = (nova.HERE / "nova.py").read_text()
    for step in ("Start the APIs", "Boot an instance and reach it by ssh"):
        assert f'step("{step}")' in source
        assert f'"{step}"' in (nova.HERE / "bench/bench.py").read_text()
