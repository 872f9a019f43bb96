# SPDX-License-Identifier: Apache-2.0
"""How the project is written: linters, sizes, what README promises, what must stand nowhere."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields

import pytest

import nova

FUNCTION = 40
LONGER = {"smoke_test"}  # a recipe
HERE = nova.HERE
SOURCE = (HERE / "nova.py").read_text()
TREE = ast.parse(SOURCE)
FUNCTIONS = [node for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)]
README = (HERE / "README.md").read_text() if (HERE / "README.md").exists() else ""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(real: Callable[[str], str]) -> Run:
    """Run a command of the real machine in the repository."""

    def run(name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        path = sys.executable if name == "python" else real(name)
        real(path)
        return subprocess.run([path, *words], cwd=HERE, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "ruff", "check", "--no-cache", "nova.py", "conf", "libexec", "bench", "docs", "tests"],
        ["-m", "ruff", "format", "--check", "--no-cache", "nova.py", "conf", "libexec", "bench", "docs", "tests"],
        ["-m", "mypy"],
    ],
    ids=["ruff", "ruff format", "mypy"],
)
def test_linters(run: Run, words: list[str]) -> None:
    done = run("python", *words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "conf/keep",
        "libexec/link-rabbit-plugins",
        "libexec/make-root",
        "libexec/make-tool",
        "libexec/inventory",
        "tests/run",
        ".ci/run",
    ],
)
def test_shell_scripts_are_valid(run: Run, name: str) -> None:
    first = (HERE / name).read_text().splitlines()[0]
    assert first in ("#!/bin/sh", "#!/bin/bash")
    assert run("bash", "-n", name).stderr == ""


def test_functions_are_short() -> None:
    length = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in FUNCTIONS}
    assert {name: n for name, n in length.items() if n > FUNCTION and name not in LONGER} == {}


def test_every_function_says_what_it_is_for() -> None:
    inner = {id(g) for f in FUNCTIONS for g in ast.walk(f) if g is not f}
    told = [f for f in FUNCTIONS if id(f) not in inner and not f.name.startswith("__")]
    assert [f.name for f in told if not ast.get_docstring(f)] == []


def calls_of(node: ast.AST, name: str) -> list[int]:
    return [n.lineno for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def test_nothing_sleeps_but_wait_for() -> None:
    allowed = next(f for f in FUNCTIONS if f.name == "wait_for")
    assert calls_of(TREE, "time.sleep") == calls_of(allowed, "time.sleep")


def test_nothing_starts_commands_but_the_wrapper_and_what_it_cannot_do() -> None:
    users = {f.name for f in FUNCTIONS if calls_of(f, "sh.Command")}
    assert users == {"command", "attach"}
    assert {f.name for f in FUNCTIONS if calls_of(f, "subprocess.run")} == {"bootstrap"}


def test_nothing_goes_through_a_shell() -> None:
    assert re.findall(r"shell=True|os\.system|os\.popen", SOURCE) == []


# ---- The words for users ----


def test_the_help_names_every_verb_and_no_other() -> None:
    assert list(nova.VERBS) == nova.VERB_WORDS


@pytest.mark.parametrize("verb", nova.VERBS)
def test_a_verb_is_a_function_of_its_name_with_a_sentence(verb: str) -> None:
    assert nova.VERBS[verb].__name__ == verb
    assert nova.VERBS[verb] is getattr(nova, verb)


def test_the_help_fits_a_terminal() -> None:
    assert max(map(len, (nova.__doc__ or "").splitlines())) <= 120


@pytest.mark.skipif(not README, reason="no README.md")
def test_readme_names_every_verb() -> None:
    assert [verb for verb in nova.VERBS if verb not in README] == []


@pytest.mark.skipif(not README, reason="no README.md")
def test_readmes_table_of_settings_is_the_codes() -> None:
    rows = re.findall(r"^\| `?([A-Z][A-Z_0-9]*)`? \| (.*?) ?\| (.+?) \|$", README, re.MULTILINE)
    shown = {True: "1", False: "0"}
    wanted = [
        (row.name, shown.get(row.default, str(row.default)), row.metadata["meaning"])
        for row in fields(nova.Settings)
        if row.name != "DIR"
    ]
    assert [(name, default.strip("`"), meaning) for name, default, meaning in rows] == wanted


@pytest.mark.skipif(not README, reason="no README.md")
def test_readme_names_every_window() -> None:
    assert [window for window in nova.WINDOWS if not re.search(rf"(?<![\w-]){window}(?![\w-])", README)] == []


# ---- What must stand nowhere ----

NOWHERE = {
    "ending processes by name": r"\b(kill" + r"all|pk" + r"ill)\b",
    "a path of somebody's machine": r"/(home|Users)/(?!me/|you/)\w+/|/wor" + r"k/|/root/\.pyenv",
    "a private address of a package mirror": r"https?://(localhost|127\.|10\.|192\.168\.)\S*/simple",
}


@pytest.mark.parametrize("pattern", NOWHERE.values(), ids=NOWHERE)
def test_it_stands_in_no_tracked_file(run: Run, pattern: str) -> None:
    names = run("git", "-c", f"safe.directory={HERE}", "ls-files").stdout.split()
    assert "nova.py" in names
    texts = {name: (HERE / name).read_text(errors="replace") for name in names if (HERE / name).exists()}
    assert {name: found[0] for name, text in texts.items() if (found := re.search(pattern, text))} == {}
