# SPDX-License-Identifier: Apache-2.0
"""Run nova's unit tests, in its tree: python - WHICH, a key of PATTERNS.

They are loaded once; then one process a CPU takes class after class. The first red one ends it.
"""

import io
import multiprocessing
import os
import sys
import unittest
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

UNIT = Path("nova/tests/unit")
# TEST: modules of UNIT
PATTERNS = {
    "1": (
        "test_context",
        "test_versions",
        "api/openstack/test_api_version_request",
        "api/openstack/compute/test_versions",
        # where an instance goes
        "scheduler/filters/test_*",
        "scheduler/weights/test_*",
        # and what it is given there
        "network/test_os_vif_util",
        "virt/test_hardware",
        "virt/libvirt/test_config",
    ),
    "all": ("**/test_*",),
}
CLASSES: dict[str, unittest.TestSuite] = defaultdict(unittest.TestSuite)


def modules(patterns: Iterable[str]) -> list[str]:
    """The names of the modules that match."""
    files = {file for pattern in patterns for file in UNIT.glob(f"{pattern}.py")}
    return [".".join(file.with_suffix("").parts) for file in sorted(files)]


def tests(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Every test of a suite of suites."""
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from tests(each)
        else:
            yield each


def be_quiet() -> None:
    """What the tests log goes nowhere: a red one says what there is to say."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def run(name: str) -> tuple[int, list[tuple[str, str]]]:
    """How many tests of this class were run, and what the red ones said."""
    result = unittest.TextTestRunner(io.StringIO(), failfast=True).run(CLASSES[name])
    red = [(test.id(), said) for test, said in (*result.failures, *result.errors)]
    return result.testsRun, red + [(test.id(), "it should have failed") for test in result.unexpectedSuccesses]


def main() -> int | str:
    """0, or 1 when a test is red."""
    for test in tests(unittest.defaultTestLoader.loadTestsFromNames(modules(PATTERNS[sys.argv[1]]))):
        CLASSES[f"{type(test).__module__}.{type(test).__qualname__}"].addTest(test)
    done, number = 0, sum(suite.countTestCases() for suite in CLASSES.values())
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork"), initializer=be_quiet) as pool:
        for future in as_completed(pool.submit(run, name) for name in CLASSES):
            ran, red = future.result()
            if red:
                pool.shutdown(cancel_futures=True)
                name, said = red[0]
                print("\n".join([*said.rstrip().splitlines()[-15:], f"{name} is red"]))
                return 1
            done += ran
            print(f"{done} of {number} unit tests of nova", flush=True)
    return 0 if done else "no such tests in this tree"


if __name__ == "__main__":
    sys.exit(main())
