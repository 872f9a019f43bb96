# SPDX-License-Identifier: Apache-2.0
"""What tests/conformance.py makes of Tempest's outcomes, and conformance.toml itself."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import conformance
from .conformance import Outcome, compare, read_stream, unneeded

ROWS = tomllib.loads(conformance.EXPECTED.read_text())
RECORDED = Path(__file__).parent / "expected/conformance.subunit"

EXPECTED = {
    "skip": [{"says": "two compute nodes", "reason": "one machine"}],
    "fail": [{"test": r"test_Broken\.", "reason": "upstream's"}],
    "race": [{"test": r"a\.Many\.", "reason": "upstream's"}],
}
PASSED = Outcome("tempest.api.a.Good.test_it[id-1]", "success", 1.0)
SKIPPED = Outcome("tempest.api.a.Many.test_it[id-2]", "skip", 0.0, "needs two compute nodes")
BROKEN = Outcome("tempest.api.a.test_Broken.test_it[id-3]", "fail", 2.0, "Traceback\nOops")


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        (PASSED, "passed"),
        (SKIPPED, "skipped as expected"),
        (BROKEN, "failed as expected"),
        (PASSED._replace(status="fail"), "new failures"),
        (PASSED._replace(status="uxsuccess"), "new failures"),
        (SKIPPED._replace(said="the moon is full"), "new skips"),
        (BROKEN._replace(status="success"), "passed, expected to fail"),
        (SKIPPED._replace(status="passed alone"), "passed alone, as expected"),
        (PASSED._replace(status="passed alone"), "passed alone only"),
    ],
)
def test_an_outcome_is_what_was_expected_or_a_surprise(outcome: Outcome, wanted: str) -> None:
    compared = compare([outcome], [outcome.test], EXPECTED)
    assert [name for name, listed in compared.rows.items() if listed] == [wanted]
    assert compared.surprises == (wanted in conformance.SURPRISES)


def test_a_test_that_nothing_was_heard_of_is_a_surprise() -> None:
    compared = compare([PASSED], [PASSED.test, SKIPPED.test], EXPECTED)
    assert [each.test for each in compared.rows["did not run"]] == [SKIPPED.test]


def test_a_class_that_was_skipped_as_a_whole_lost_no_test() -> None:
    whole = SKIPPED._replace(test="setUpClass (tempest.api.a.Many)")
    assert compare([whole], [SKIPPED.test, SKIPPED.test + "b"], EXPECTED).surprises == 0
    assert compare([whole], [PASSED.test], EXPECTED).surprises == 1


def test_a_worker_that_died_is_a_surprise() -> None:
    died = Outcome("process-returncode", "fail", 0.0, "killed")
    assert compare([PASSED, died], [PASSED.test], EXPECTED).rows["new failures"] == [died]


def test_what_failed_beside_others_is_run_once_more_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [PASSED._replace(status="fail"), SKIPPED._replace(test="setUpClass (tempest.api.a.Many)", status="fail")]
    died = Outcome("process-returncode", "fail", 0.0, "killed")
    asked = list[str]()

    def run(_: Path, names: list[str], each: Callable[[Outcome], None], workers: int) -> None:
        assert workers == 1
        asked.extend(names)
        each(PASSED)
        each(SKIPPED._replace(status="fail"))

    monkeypatch.setattr(conformance, "run_tests", run)
    found = conformance.again(tmp_path, [PASSED.test, SKIPPED.test, BROKEN.test], [*failed, BROKEN, died], EXPECTED)
    assert asked == [PASSED.test, SKIPPED.test]
    assert [each.status for each in found] == ["fail", "passed alone", "fail", "fail"]
    assert found[0] == BROKEN, "an expected failure is not run again"


def test_a_class_that_failed_is_not_one_whose_name_begins_alike() -> None:
    failed = PASSED._replace(test="tearDownClass (tempest.api.a.Good)")
    assert conformance.tests_of(failed, [PASSED.test, "tempest.api.a.GoodToo.test_it[id-4]"]) == [PASSED.test]


def test_rows_that_are_about_no_test_are_told() -> None:
    assert unneeded([SKIPPED, BROKEN], EXPECTED) == []
    assert unneeded([PASSED], EXPECTED) == ["two compute nodes", r"test_Broken\.", r"a\.Many\."]


def test_what_a_real_run_told_is_read() -> None:
    found: list[Outcome] = []
    with RECORDED.open("rb") as stream:
        read_stream(stream, found.append)
    assert sorted({each.status for each in found}) == ["fail", "skip", "success"]
    assert all(each.test.count("tempest.") for each in found)
    skipped = next(each for each in found if each.status == "skip")
    assert skipped.said and "Traceback" not in skipped.said
    failed = [each for each in found if each.status == "fail"]
    assert all("Traceback" in each.said for each in failed)
    assert max(each.seconds for each in failed) > 1


def test_what_a_run_tells_can_be_kept_and_read_again(tmp_path: Path) -> None:
    found: list[Outcome] = []
    again: list[Outcome] = []
    with RECORDED.open("rb") as stream, (tmp_path / "kept").open("wb") as kept:
        read_stream(stream, found.append, kept)
    with (tmp_path / "kept").open("rb") as stream:
        read_stream(stream, again.append)
    assert again == found


def test_later_parts_of_a_configuration_are_laid_over_earlier_ones() -> None:
    parts: list[dict[str, dict[str, Any]]] = [{"a": {"x": 1, "y": 2}}, {"a": {"y": 3}, "b": {}}]
    assert conformance.merged(parts) == {"a": {"x": 1, "y": 3}, "b": {}}
    assert parts[0] == {"a": {"x": 1, "y": 2}}


@pytest.mark.parametrize(("kind", "key"), [("skip", "says"), ("fail", "test")])
def test_every_row_of_conformance_toml_has_a_reason(kind: str, key: str) -> None:
    rows = ROWS.get(kind, [])
    assert all({*row} == {key, "reason"} and len(row["reason"]) > 10 for row in rows)
    assert [row[key] for row in rows if not re.compile(row[key])] == []
    assert len({row[key] for row in rows}) == len(rows)


def test_what_runs_every_time_is_a_choice_of_tempests_smoke_tests() -> None:
    assert re.compile(ROWS["quick"])
