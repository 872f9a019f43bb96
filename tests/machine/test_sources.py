"""branch, from each kind of source, with the real git and brz; and a run of what was branched, with nova's unit tests first."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Machine

WSGI = "nova/wsgi/osapi_compute.py"
VERSIONS = "nova/api/openstack/compute/versions.py"
GITIGNORE = "*.pyc\n*.egg-info\nAUTHORS\nChangeLog\n"  # as upstream's, which is not in its releases


def command(folder: Path, *words: str) -> str:
    """What a command says in a folder; it has to succeed."""
    env = {**os.environ, "PATH": f"/usr/bin:/bin:{os.environ['PATH']}"}  # Debian's brz takes the first Python for its own
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def git(folder: Path, *words: str) -> str:
    """A git command of somebody's in a folder."""
    return command(folder, "git", "-c", "user.name=me", "-c", "user.email=me@example.org", *words)


def commit(folder: Path, name: str, text: str) -> str:
    """Add a line to a file of a work tree, and commit it: the commit's name."""
    with open(folder / name, "a") as file:
        file.write(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", text.strip("#\n "))
    return git(folder, "rev-parse", "HEAD")


def brz_commit(folder: Path, message: str) -> None:
    """Commit with Breezy what is changed in the folder."""
    command(folder, "env", "BRZ_EMAIL=me <me@example.org>", "brz", "commit", "--quiet", "--message", message)


class Branched(Machine):
    """A folder of its own, in which only branch is called."""

    def branch(self, source: object = "", ok: int = 0) -> str:
        return self.nova("branch", *([str(source)] if source else []), ok=ok)

    @property
    def tree(self) -> Path:
        return self.folder / "nova"

    def clear(self) -> None:
        """No tree, and the folder nova.py's own: branch looks for free ports only where it makes that folder.

        The cloud's Debian stays: to make it takes longer than all else.
        """
        state = self.tree / "state"
        state.mkdir(parents=True, exist_ok=True)
        for path in {*self.tree.iterdir(), *state.iterdir()} - {state, state / "root", state / "root.made-from"}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture(scope="module")
def there() -> Iterator[Branched]:
    folder = Path(tempfile.mkdtemp(prefix="nova-sources-", dir=Path.home()))
    it = Branched(folder)
    it.clear()
    yield it
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def plain(there: Branched) -> Path:
    """A folder with so much of the release's source that it is a nova, and can be copied in a moment."""
    assert "Fetch nova's source" in there.branch()
    folder = there.folder / "plain"
    for name in ("setup.cfg", "pyproject.toml", WSGI):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(there.tree / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def commits(there: Branched, plain: Path) -> dict[str, str]:
    """A bare repository upstream.git: one commit, the tag 34.0.1, another commit, and the branch stable/topic."""
    there.clear()
    there.branch("git+file:///nowhere.git", ok=1)  # installs git where it is not there yet
    work = there.folder / "work"
    shutil.copytree(plain, work)
    (work / ".gitignore").write_text(GITIGNORE)
    git(work, "init", "--quiet", "--initial-branch=master")
    known = {"first": commit(work, WSGI, "# first\n")}
    known["34.0.1"] = commit(work, WSGI, "# of the tag\n")
    git(work, "tag", "34.0.1")
    git(work, "checkout", "--quiet", "-b", "stable/topic")
    known["stable/topic"] = commit(work, WSGI, "# of the topic\n")
    git(work, "checkout", "--quiet", "master")
    known[""] = commit(work, WSGI, "# the newest\n")
    git(work, "clone", "--quiet", "--bare", ".", "../upstream.git")
    return known


@pytest.fixture
def clone(there: Branched, commits: dict[str, str]) -> Path:
    """A tree fresh from git."""
    there.clear()
    there.branch(upstream(there))
    return there.tree


def upstream(there: Branched, ref: str = "") -> str:
    """SOURCE of the repository."""
    return f"git+file://{there.folder}/upstream.git" + (f"@{ref}" if ref else "")


# ---- Sources ----


def test_another_release_from_pypi(there: Branched) -> None:
    there.clear()
    there.branch("pypi:nova==33.0.0")
    assert "\nVersion: 33.0.0\n" in (there.tree / "PKG-INFO").read_text()
    assert "so no such release" in there.branch("pypi:nova==33.0.99", ok=2)
    assert "\nVersion: 33.0.0\n" in (there.tree / "PKG-INFO").read_text()


@pytest.mark.parametrize("ref", ["", "34.0.1", "stable/topic", "first"])
def test_git(there: Branched, commits: dict[str, str], ref: str) -> None:
    there.clear()
    there.branch(upstream(there, commits["first"] if ref == "first" else ref))
    assert git(there.tree, "rev-parse", "HEAD") == commits[ref]
    assert git(there.tree, "rev-list", "--count", "HEAD") == "1", "shallow"
    assert git(there.tree, "status", "--porcelain") == "", "and what nova.py keeps there is none of git's business"
    assert there.branch(upstream(there)), "nothing would be lost"
    assert git(there.tree, "rev-parse", "HEAD") == commits[""]


def test_git_can_be_gone_on_with(there: Branched, clone: Path, commits: dict[str, str]) -> None:
    mine = commit(clone, WSGI, "# mine\n")
    assert "1 changes" in (said := there.branch(upstream(there), ok=1)) and "# mine" not in said and " mine" in said
    git(clone, "push", "--quiet", "origin", "HEAD:refs/heads/mine")
    git(clone, "fetch", "--quiet", "origin", "mine:refs/remotes/origin/mine")
    there.branch(upstream(there, "mine"))
    assert git(clone, "rev-parse", "HEAD") == mine
    git(there.folder / "upstream.git", "branch", "--quiet", "-D", "mine")


def test_git_that_is_not_there(there: Branched, clone: Path) -> None:
    there.branch(upstream(there, "no-such-ref"), ok=1)
    assert (clone / WSGI).exists(), "and nothing was deleted"


def lose_change(tree: Path) -> str:
    (tree / WSGI).write_text("another day's work")
    return WSGI


def lose_file(tree: Path) -> str:
    (tree / "nova/new.py").write_text("a day's work")
    return "nova/new.py"


def lose_branch(tree: Path) -> str:
    git(tree, "checkout", "--quiet", "-b", "mine")
    commit(tree, WSGI, "# on a branch of mine\n")
    git(tree, "checkout", "--quiet", "master")
    return "on a branch of mine"


def lose_stash(tree: Path) -> str:
    (tree / WSGI).write_text("another day's work")
    git(tree, "stash")
    return "WIP on master"


@pytest.mark.parametrize("lose", [lose_change, lose_file, lose_branch, lose_stash])
def test_git_with_work_in_it_is_not_deleted(there: Branched, clone: Path, lose: object) -> None:
    assert callable(lose)
    what = lose(clone)
    said = there.branch(upstream(there), ok=1)
    assert "Refusing to branch" in said and what in said and "state/tree.json" in said
    assert what in git(clone, "log", "--all", "--format=%s") + git(clone, "status", "--porcelain")
    (there.tree / "state/tree.json").unlink()  # the way to go on that it names
    there.branch(upstream(there))
    assert git(clone, "status", "--porcelain") == "" and (clone / WSGI).read_text().endswith("# the newest\n")


def test_a_folder_comes_with_its_changes_and_its_git(there: Branched, commits: dict[str, str]) -> None:
    there.clear()
    work = there.folder / "work"
    (work / "nova/new.py").write_text("NEW = True\n")
    (work / "nova/new.py").chmod(0o600)
    try:
        there.branch(work)
    finally:
        (work / "nova/new.py").unlink()
    assert git(there.tree, "status", "--porcelain") == "?? nova/new.py"
    assert git(there.tree, "describe", "--tags").startswith("34.0.1-1-")
    assert (there.tree / "nova/new.py").stat().st_mode & 0o044 == 0o044, "services, which are not its owner, read it"
    there.branch(work)  # both are still there, so nothing would be lost
    assert git(there.tree, "status", "--porcelain") == ""
    lose_change(there.tree)
    assert WSGI in there.branch(work, ok=1)


def test_a_linked_work_tree_is_a_plain_folder(there: Branched, commits: dict[str, str]) -> None:
    there.clear()
    git(there.folder / "work", "worktree", "add", "--quiet", "../linked", "stable/topic")
    there.branch("linked")
    assert not (there.tree / ".git").exists() and (there.tree / WSGI).read_text().endswith("# of the topic\n")


def test_a_plain_folder(there: Branched, plain: Path) -> None:
    there.clear()
    there.branch(plain)
    assert command(there.folder, "diff", "-r", "--exclude=state", "plain", "nova") == ""
    lose_change(there.tree)
    assert WSGI in there.branch(ok=1)


@pytest.mark.parametrize("inside", [True, False], ids=["in a folder", "as it is"])
def test_a_tarball(there: Branched, plain: Path, inside: bool) -> None:
    there.clear()
    words = ("-C", ".", "plain") if inside else ("-C", "plain", ".")
    command(there.folder, "tar", "-czf", "nova.tgz", *words)
    there.branch("nova.tgz")
    assert command(there.folder, "diff", "-r", "--exclude=state", "plain", "nova") == ""


@pytest.mark.parametrize("form", ["{}", "bzr+file://{}"])
def test_breezy(there: Branched, plain: Path, form: str) -> None:
    there.clear()
    there.branch("bzr+file:///nowhere", ok=1)  # which installs brz where it is not there yet
    home = there.folder / "bazaar"
    if not home.exists():
        shutil.copytree(plain, home)
        command(home, "brz", "init", "--quiet")
        command(home, "brz", "add", "--quiet")
        brz_commit(home, "first")
    there.branch(form.format(home))
    assert command(there.tree, "brz", "revno") == "1"
    lose_change(there.tree)
    assert WSGI in there.branch(ok=1)
    brz_commit(there.tree, "mine")
    assert ".bzr/branch/last-revision" in there.branch(ok=1)


def test_a_bad_source_is_refused_and_nothing_is_deleted(there: Branched, plain: Path) -> None:
    there.clear()
    there.branch(plain)
    other, old, taken = (there.folder / name for name in ("other", "old", "taken"))
    for folder in (other, old, taken):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "nova/wsgi").mkdir(parents=True)
        shutil.copy(plain / "setup.cfg", folder)
        shutil.copy(plain / WSGI, folder / WSGI)
    (other / "setup.cfg").write_text("[metadata]\nname = glance\n")
    (old / WSGI).unlink()
    (taken / "novarc").touch()
    (there.folder / "text").write_text("no tarball")
    for source, words in {
        "no/such/path": "there is no such path",
        "svn+https://example.org/nova": "it can be pypi:nova",
        "other": "no nova in it",
        "old": "too old",
        "taken": "it has novarc",
        str(there.folder): "is inside of it",
    }.items():
        assert words in there.branch(source, ok=2), source
    there.branch("text", ok=1)
    assert command(there.folder, "diff", "-r", "--exclude=state", "plain", "nova") == ""


# ---- A run of it ----


def test_a_red_unit_test_stops_the_run_and_a_green_tree_runs(machine: Machine) -> None:
    assert not machine.ports() and not machine.processes()
    before = machine.traces()
    tree, bare = machine.folder / "nova", machine.folder / "upstream.git"
    machine.nova("branch")
    machine.nova("branch", "git+file:///nowhere.git", ok=1)
    git(tree, "init", "--quiet", "--initial-branch=master")
    (tree / ".gitignore").write_text(GITIGNORE + "PKG-INFO\n/state\n/instances\n/images\n/novarc\n/clouds.yaml\n")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "a release")
    git(tree, "tag", "34.0.1")
    git(tree, "clone", "--quiet", "--bare", ".", str(bare))
    shutil.rmtree(tree / ".git")
    (tree / ".gitignore").unlink()

    machine.nova("branch", f"git+file://{bare}@34.0.1")
    assert not (tree / "PKG-INFO").exists()
    line = (tree / VERSIONS).read_text()
    (tree / VERSIONS).write_text(line.replace('"2013-07-23T11:33:21Z"', '"2031-07-23T11:33:21Z"'))
    said = machine.nova("run_detached", ok=1, env={"TEST": "1"})
    assert "nova.tests.unit.api.openstack.compute.test_versions.Versions" in said and " is red" in said
    assert "2031-07-23T11:33:21Z" in said, "its last lines"
    assert not machine.ports() and not machine.processes() and machine.traces() == before

    git(tree, "checkout", "--quiet", VERSIONS)
    said = machine.nova("run_detached", env={"TEST": "1"})
    assert "Run nova's unit tests" in said and "The cloud is up" in said
    log = (tree / "state/log/nova.log").read_text()
    number = log.rpartition(" unit tests of nova")[0].rpartition(" ")[2]
    assert int(number) > 500 and f"{number} of {number} unit tests of nova" in log
    metadata = next((tree / "state/env").glob("lib/python3*/site-packages/nova-*/METADATA"))
    assert "\nVersion: 34.0.1\n" in metadata.read_text(), "as git's tag says"
    for verb in ("terminate", "clean", "scrub"):
        machine.nova(verb)
