"""libexec/machine-files.py: what the cloud's Debian has of the machine."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

import nova

from .conftest import Machine

PROGRAM = nova.HERE / "libexec/machine-files.py"


@pytest.fixture(scope="module")
def program() -> Any:
    """The program as a module."""
    loader = SourceFileLoader("machine_files", str(PROGRAM))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        (["nameserver 192.0.2.53"], 0),
        (["nameserver 127.0.0.53", "nameserver 192.0.2.53"], 1),
        (["nameserver 127.0.0.53", None, "search a\nnameserver 2001:db8::53"], 2),
        (["nameserver 127.0.0.53\nnameserver 192.0.2.53", "nameserver 192.0.2.54"], 0),
        (["nameserver fe80::1%eth0", "nameserver 192.0.2.53"], 1),
        (["nameserver 127.0.0.53", "nameserver ::1"], 0),
        ([None, "nameserver 192.0.2.53"], 1),
        ([None, None], None),
    ],
)
def test_name_servers_are_those_that_instances_reach(
    program: Any, tmp_path: Path, texts: list[str | None], chosen: int | None
) -> None:
    files = [tmp_path / str(number) for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text) if text is not None else None
    assert program.name_servers(tuple(map(str, files))) == ("" if chosen is None else texts[chosen])


def test_files_are_written_below_root_alone(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    outside.write_text("not ours")
    (root / "etc/resolv.conf").symlink_to(outside)
    certificates = tmp_path / "mine.pem"
    certificates.write_text("a certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates))
    program.main(root)
    assert outside.read_text() == "not ours"
    assert "127.0.1.1 testhost\n" in (root / "etc/hosts").read_text()
    assert not (root / "etc/resolv.conf").is_symlink()
    assert (root / str(certificates).lstrip("/")).read_text() == "a certificate"


def test_what_the_machine_trusts_is_where_no_package_writes_and_uv_reads_it(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").write_text("the machine's")
    monkeypatch.setattr(program, "CERTIFICATES", str(tmp_path / "bundle"))
    monkeypatch.setattr(program, "NAMING", ())
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    program.main(tmp_path / "root")
    assert (tmp_path / "root" / nova.TRUSTED).read_text() == "the machine's"
    assert f"/{nova.TRUSTED}" == program.TRUSTED


def test_uv_trusts_what_the_machine_trusts_while_packages_are_installed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fake(nova.CLONE / ".tool/uv")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    nova.uv("venv")
    machine.put(nova.ROOTFS / nova.TRUSTED)
    nova.uv("venv")
    first, second = (line for line in machine.called() if "uv --quiet" in line)
    assert nova.TRUSTED not in first and f"SSL_CERT_FILE=/{nova.TRUSTED} " in second
