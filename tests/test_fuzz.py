# SPDX-License-Identifier: Apache-2.0
"""Hundreds of malformed values for variables and arguments: each is refused with one line, and changes nothing."""

import ipaddress
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

import nova

from .conftest import Machine

# What people and programs get wrong, beside what hypothesis makes up: no value in an environment has a NUL in it.
WRONG = (
    *("\n", "\r\n", "a\nb", "\x1b[2J", " ", " 1", "1 ", "\t0", "-1", "+1", "00", "01"),
    *("0x10", "1e3", "1_0", "1.0", "true", "yes", "\uff11", "\ufeff1"),
    *("$HOME", "$(id)", "`id`", "; id", "a b", "a'b", 'a"b', "a\\b", "%s", "{0}", "${x}", "*", "~", "-", "--", "-v", "#"),
    *("..", "../..", "/", "//", "/../x y", "/dev/null", "/proc/self/mem", "/" + "a" * 300, "/" + "a/" * 3000, "9" * 5000),
    *("10.0.0.0", "10.0.0.0/33", "10.0.0.1/24", "10.0.0.0/-1", "0.0.0.0/0", "127.0.0.0/8", "::1", "::/0", "fd00::/65"),
    *("http://", "http://[", "http://a:b@c/d", "ftp://a/b", "file:///etc/passwd", "http://a/b#sha256=12", "://", "http://a:99999/"),
    *("\udcff", "fe80::1%lo", "ldap://", "ldap://a:70000", "ldap://a/b", "dc=", "dc=a,b", "dc=a,dc=b c", "o=a\n"),
)  # fmt: skip
ALPHABET = "".join(map(chr, range(1, 127))) + "\x7f\x85\xa0\xe9\xdf\u0660\u200b\u2028\u202e\u4e2d\ufe0f\U0001f600\udc80"
VALUES = st.sampled_from(WRONG) | st.text(ALPHABET, min_size=1, max_size=60)
VALUES |= st.builds("{}{}".format, st.sampled_from(WRONG), st.text(ALPHABET, max_size=5))
FORMS = {name: form for name, form, _ in nova.WORDS}
BESIDE = {"OPENDJ_PACKAGE": {"USE_OPENDJ": "1"}, "FIXED_RANGE_V6": {"USE_IPV6": "1"}}  # nobody looks at it otherwise
MANY = settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def nothing_is_kept(tmp_path: Path) -> None:
    """What hypothesis remembers is the test's own."""
    set_hypothesis_home_dir(tmp_path / "hypothesis")


def is_range(value: str, kind: type) -> bool:
    """Does Python read a range of addresses in it?"""
    try:
        return bool(kind(value))
    except ValueError:
        return False


def is_wrong(name: str, value: str) -> bool:
    """Is this surely no value of this variable, by another reason than that nova.py refuses it?"""
    row = next(row for row in fields(nova.Settings) if row.name == name)
    if isinstance(row.default, bool):
        return value not in ("0", "1")
    if name in nova.CHOICES:
        return value not in nova.CHOICES[name]
    if name in ("FLOATING_RANGE", "FIXED_RANGE"):
        return not is_range(value, ipaddress.IPv4Network)
    if name == "FIXED_RANGE_V6":
        return not is_range(value, ipaddress.IPv6Network)
    if name == "IMAGE":
        return not re.match("https?://", value) and not Path(value).is_file() if "\0" not in value and len(value) < 200 else True
    return not re.fullmatch(FORMS[name], value, re.ASCII) if name in FORMS else True


NAMES = [row.name for row in fields(nova.Settings) if row.name != "DIR"]
CASES = st.tuples(st.sampled_from(NAMES), VALUES).filter(lambda case: is_wrong(*case))


def tree(machine: Machine) -> list[tuple[str, int]]:
    """Every file of the machine, and when it was changed; but for the lock that only one nova.py holds."""
    files = (path for path in machine.root.rglob("*") if path.is_file() and path.name != "nova.py.lock")
    return sorted((str(path), os.lstat(path).st_mtime_ns) for path in files)


def assert_refused(code: int, said: str) -> None:
    """One line says it, and below it at most what to do; no traceback, and no control character reaches the terminal."""
    first, *hints = said.removesuffix("\n").split("\n")
    assert (code, first[:9]) == (2, "nova.py: "), said
    assert len(hints) <= 1 and all(line.startswith("  ") for line in hints), said
    assert all(character.isprintable() for character in first), said


def test_five_hundred_malformed_variables_are_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.fake("dpkg-deb", "exit 2")
    before, refused = tree(machine), list[str]()

    @MANY
    @given(CASES, st.sampled_from(["settings", "install", "run", "run_detached", "branch"]))
    def refuse(case: tuple[str, str], verb: str) -> None:
        name, value = case
        with monkeypatch.context() as own:
            for variable, text in {**BESIDE.get(name, {}), name: value}.items():
                own.setenv(variable, text)
            code = nova.main([verb])
        assert_refused(code, capsys.readouterr().err)
        assert value not in said_of(machine) or name == "OPENDJ_PACKAGE"
        refused.append(name)

    refuse()
    assert len(refused) >= 500 and {*refused} == {*NAMES}
    assert tree(machine) == before


def said_of(machine: Machine) -> str:
    """Every command that was called."""
    return machine.transcript()


def test_two_hundred_malformed_arguments_are_refused(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.without("dpkg-deb")
    before = tree(machine)
    bad = VALUES.filter(lambda word: not re.fullmatch(r"[\w./-]*", word, re.ASCII) or word.startswith("-"))
    bad = bad.filter(lambda word: word not in ("-v", "-p"))

    @settings(MANY, max_examples=200)
    @given(st.sampled_from(sorted(nova.VERBS)), st.lists(bad, min_size=1, max_size=4))
    def refuse(verb: str, words: list[str]) -> None:
        code = nova.main([verb, *words])
        said = capsys.readouterr().err
        assert code == 2 or (code == 1 and "no cloud in" in said and verb in nova.OF_A_CLOUD), said
        assert_refused(2, said)

    refuse()
    assert tree(machine) == before and machine.transcript() == ""


@pytest.mark.parametrize("number", range(24))
def test_a_program_says_the_same(real: Callable[[str], str], number: int, tmp_path: Path) -> None:
    """The same by real calls of the program: what the environment's bytes become there is Python's own doing."""
    cases = [(name, value) for value in WRONG for name in NAMES if name not in BESIDE and is_wrong(name, value)]
    name, value = cases[number * 97 % len(cases)]
    real(sys.executable)
    (here := tmp_path / "here").mkdir()
    own = {"PATH": os.environ["PATH"], "NOVA_PY_PRIVATE": "1", name: value, "PYTHONDONTWRITEBYTECODE": "1"}
    line = [sys.executable, str(nova.HERE / "nova.py"), "settings"]
    done = subprocess.run(line, env=own, cwd=here, capture_output=True, text=True, check=False)
    assert_refused(done.returncode, done.stderr)
    assert done.stdout == "" and list(here.iterdir()) == []
