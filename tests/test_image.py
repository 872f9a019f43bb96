# SPDX-License-Identifier: Apache-2.0
"""IMAGE: what is taken for an image and what is refused, and its download from a server on loopback."""

import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest

import nova

from .conftest import Machine


def qcow2(size: int = 1 << 31, backing: int = 0, incompatible: int = 0) -> bytes:
    """The first sector of a qcow2, as its specification has it."""
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, backing, 0, 16, size, 0, 0, 0, 0, 0, 0, 0)
    return (head + struct.pack(">QQQII", incompatible, 0, 0, 4, 104)).ljust(512, b"\0")


def raw(at: int, mark: bytes) -> bytes:
    return (b"\0" * at + mark).ljust(1 << 17, b"\0")


def test_a_qcow2_is_known_and_its_disks_size(tmp_path: Path) -> None:
    (tmp_path / "one.img").write_bytes(qcow2(3 << 30))
    assert nova.image_format(tmp_path / "one.img") == ("qcow2", 3 << 30)


PARTITION = b"\x80" + b"\0" * 3 + b"\x83" + b"\0" * 3 + b"\1\0\0\0\x7f\0\0\0" + b"\0" * 48 + b"\x55\xaa"


@pytest.mark.parametrize(("at", "mark"), [(0x1BE, PARTITION), (0x438, b"\x53\xef")], ids=["a partition table", "a file system"])
def test_a_raw_disk_is_known(tmp_path: Path, at: int, mark: bytes) -> None:
    (tmp_path / "one.img").write_bytes(raw(at, mark))
    assert nova.image_format(tmp_path / "one.img") == ("raw", 1 << 17)


NO_IMAGE = {
    "its first layer elsewhere": (qcow2(backing=104), "Image has a backing file; make it one whole file: qemu-img"),
    "its data elsewhere": (qcow2(incompatible=4), "Image has data_file set; make it one whole file: qemu-img"),
    "empty": (b"", "neither qcow2 nor a raw disk"),
    "text": (b"#!/bin/sh\necho no disk\n", "neither qcow2 nor a raw disk"),
    "a CD": (raw(0x8001, b"CD001"), "neither qcow2 nor a raw disk"),
}


@pytest.mark.parametrize(("content", "why"), NO_IMAGE.values(), ids=NO_IMAGE)
def test_a_file_that_is_no_image_is_refused_before_anything_is_changed(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "one.img").write_bytes(content)
    with pytest.raises(nova.Failure) as caught:
        nova.settings_from({"IMAGE": str(tmp_path / "one.img")}, str(tmp_path / "nova"))
    assert str(caught.value).startswith(f"IMAGE={tmp_path}/one.img: {why}") and caught.value.code == 2


A_URL = "it can be a path, or the URL of a file by http or https, without a password"


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("/srv/none.img", "No such file or directory"),
        ("/srv", "Is a directory"),
        ("ftp://host/one.img", A_URL),
        ("http:///one.img", A_URL),
        ("http://[/one.img", "Invalid IPv6 URL"),
        ("https://host/", A_URL),
        ("https://host/one.img#sha256=12", "after # it can say sha256=HEX"),
        ("https://host/one.img#md5=" + "0" * 64, "after # it can say sha256=HEX"),
    ],
)
def test_a_place_that_is_none_is_refused(cfg: nova.Settings, machine: Machine, image: str, why: str) -> None:
    with pytest.raises(nova.Failure) as caught:
        nova.settings_from({"IMAGE": image}, str(cfg.DIR))
    assert (str(caught.value).replace(str(machine.root), ""), caught.value.code) == (f"IMAGE={image}: {why}", 2)


def test_a_password_in_the_url_is_refused_and_not_told(cfg: nova.Settings) -> None:
    with pytest.raises(nova.Failure, match="without a password") as caught:
        nova.settings_from({"IMAGE": "https://me:hidden@host/one.img"}, str(cfg.DIR))
    assert "hidden" not in str(caught.value)


def test_a_path_is_read_where_the_caller_sees_it(cfg: nova.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where we see it, who have libvirt's folders of our own."""
    (tmp_path / "one.qcow2").write_bytes(qcow2())
    monkeypatch.chdir(tmp_path)
    cfg = nova.settings_from({"IMAGE": "one.qcow2"}, str(cfg.DIR))
    assert str(nova.image_file(cfg)).endswith(f"/proc/{os.getppid()}/root{tmp_path}/one.qcow2")


# ---- Download ----


class Server(SimpleHTTPRequestHandler):
    """Files of a folder; `sent` names what was sent whole."""

    sent: ClassVar[list[str]] = []
    cut: ClassVar[bool] = False

    def copyfile(self, source: Any, outputfile: Any) -> None:
        self.sent.append(self.path)
        outputfile.write(source.read()[: 10 if self.cut else None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of the folder `served`, in which there is an image."""
    monkeypatch.setattr(Server, "sent", [])
    monkeypatch.setattr(Server, "cut", False)
    (tmp_path / "served").mkdir()
    (tmp_path / "served/one.qcow2").write_bytes(qcow2())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path / "served"))) as server:
        (thread := threading.Thread(target=server.serve_forever)).start()
        yield f"http://127.0.0.1:{server.server_port}/one.qcow2"
        server.shutdown()
        thread.join()


def fetched(cfg: nova.Settings, url: str) -> nova.Settings:
    """The settings with that URL, whose file was fetched."""
    (nova.STATE / "cache").mkdir(exist_ok=True)
    cfg = nova.settings_from({"IMAGE": url}, str(cfg.DIR))
    nova.fetch_image(cfg)
    return cfg


def test_a_download_is_kept(cfg: nova.Settings, url: str) -> None:
    assert nova.image_file(fetched(cfg, url)).read_bytes() == qcow2()
    fetched(cfg, url)
    assert Server.sent == ["/one.qcow2"]


def test_a_download_that_was_cut_off_leaves_nothing_that_looks_whole(cfg: nova.Settings, url: str) -> None:
    Server.cut = True
    with pytest.raises(nova.Failure, match=f"cut off after 10 of {len(qcow2())} bytes") as caught:
        fetched(cfg, url)
    assert caught.value.code == 1
    Server.cut = False
    assert nova.image_file(fetched(cfg, url)).read_bytes() == qcow2()


def test_a_hash_in_the_url_is_honoured(cfg: nova.Settings, url: str) -> None:
    hash = hashlib.sha256(qcow2()).hexdigest()
    fetched(cfg, f"{url}#sha256={hash.upper()}")
    with pytest.raises(nova.Failure, match=f"its SHA-256 is {hash}"):
        fetched(cfg, f"{url}#sha256={'0' * 64}")


def test_what_the_url_gives_is_looked_into(cfg: nova.Settings, url: str, tmp_path: Path) -> None:
    (tmp_path / "served/one.qcow2").write_bytes(qcow2(backing=104))
    for _ in range(2):
        with pytest.raises(nova.Failure, match="Image has a backing file"):
            fetched(cfg, url)


def test_a_url_that_is_not_there_is_told(cfg: nova.Settings, url: str) -> None:
    with pytest.raises(nova.Failure, match="404"):
        fetched(cfg, url.replace("one", "two"))


def test_the_image_is_uploaded_in_its_format(cfg: nova.Settings, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    admin, sent = MagicMock(), []
    monkeypatch.setattr(nova, "cloud", MagicMock(return_value=admin))
    monkeypatch.setattr(nova, "IMAGES", {})
    cfg = fetched(cfg, url)
    admin.image.create_image.side_effect = lambda name, data, **_: sent.append(data.read())
    nova.upload_image(cfg)
    (call,) = (each for each in admin.image.create_image.mock_calls if "data" in each.kwargs)
    assert sent == [qcow2()]
    assert {k: v for k, v in call.kwargs.items() if k != "data"} == {
        "name": "one", "disk_format": "qcow2", "container_format": "bare", "visibility": "public", "min_disk": 2,
    }  # fmt: skip
