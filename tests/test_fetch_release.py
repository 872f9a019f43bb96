# SPDX-License-Identifier: Apache-2.0
"""libexec/fetch-release.py: what it takes from uv.lock and from an index, and what it refuses."""

import hashlib
import http.server
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nova

spec: Any = importlib.util.spec_from_file_location("fetch_release", nova.HERE / "libexec/fetch-release.py")
program: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)

CONTENT = b"content"
HASH = hashlib.sha256(CONTENT).hexdigest()
PAGE = f'href="../../files/nova-33.0.0.0rc1.tar.gz#sha256=cd34" href="../../files/nova-33.0.0.tar.gz#sha256={HASH}"'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        pages = {"/simple/nova/": PAGE.encode(), "/files/nova-33.0.0.tar.gz": CONTENT, "/uv.whl": CONTENT}
        self.send_response(200 if self.path in pages else 404)
        self.end_headers()
        self.wfile.write(pages.get(self.path, b""))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package index on loopback, as the user's environment names it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        place = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("PIP_INDEX_URL", f"{place}/simple/")
        yield place
        server.shutdown()


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str) -> Path:
    """A uv.lock that knows one wheel."""
    path = tmp_path / "uv.lock"
    path.write_text(f'[[package]]\nname = "uv"\nwheels = [{{ url = "{site}/uv.whl", hash = "sha256:{HASH}" }}]\n')
    monkeypatch.setattr(program, "LOCK", path)
    return path


def refusal(*words: str) -> str:
    """What it says when it refuses."""
    with pytest.raises(SystemExit) as caught:
        program.main(*words)
    return str(caught.value)


def test_the_file_of_the_lock(lock: Path, tmp_path: Path) -> None:
    program.main("uv", r"\.whl$", str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_that_is_not_the_locks_is_refused(lock: Path, tmp_path: Path) -> None:
    lock.write_text(lock.read_text().replace(HASH, "0" * 64))
    assert "is not the file that was asked for: its SHA-256 differs" in refusal("uv", "whl", str(tmp_path / "file"))
    assert not (tmp_path / "file").exists()


def test_a_machine_that_the_lock_has_no_file_for(lock: Path, tmp_path: Path) -> None:
    assert refusal("uv", "_vax.whl$", str(tmp_path / "file")).startswith("uv.lock has no uv like _vax.whl$")


def test_a_version_is_found_through_the_users_index(site: str, tmp_path: Path) -> None:
    program.main("nova", "", str(tmp_path / "file"), "33.0.0")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_version_that_there_is_not(site: str, tmp_path: Path) -> None:
    assert refusal("nova", "", str(tmp_path / "file"), "33.0") == f"{site}/simple/nova/ names no source of nova 33.0"


def test_without_a_network_it_says_so(lock: Path, tmp_path: Path) -> None:
    lock.write_text(lock.read_text().replace("/uv.whl", "/gone.whl"))
    assert "HTTP Error 404" in refusal("uv", "whl", str(tmp_path / "file"))


@pytest.mark.online
def test_a_machine_without_certificates(real: Callable[[str], str], tmp_path: Path) -> None:
    words = [real(sys.executable), program.__file__, "uv", "_x86_64.whl$", str(tmp_path / "file")]
    none = {"SSL_CERT_FILE": "/dev/null", "SSL_CERT_DIR": str(tmp_path)}
    done = subprocess.run(words, env=none, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "CERTIFICATE_VERIFY_FAILED" in done.stderr
    assert done.stderr.endswith("; install ca-certificates, if this machine has none\n")
