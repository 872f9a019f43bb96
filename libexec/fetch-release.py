#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: fetch-release.py PACKAGE PATTERN FILE [VERSION]

Download a file of a Python package: the one in uv.lock whose URL matches PATTERN (a regular expression), or the
source of VERSION, as the user's package index (UV_DEFAULT_INDEX, UV_INDEX_URL, PIP_INDEX_URL) or PyPI names it.
FILE is written only if its SHA-256 is the one that uv.lock, or the index, says. It needs python3's standard library alone.
"""

import hashlib
import os
import re
import sys
import tomllib
import urllib.parse
import urllib.request
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "uv.lock"


def download(url: str) -> bytes:
    """The bytes behind `url`."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
    except OSError as error:
        unknown = "CERTIFICATE_VERIFY_FAILED" in str(error)
        sys.exit(f"cannot download {url}: {error}" + "; install ca-certificates, if this machine has none" * unknown)
    return content


def locked(package: str, pattern: str) -> tuple[str, str]:
    """URL and SHA-256 of a file in uv.lock."""
    row = next(row for row in tomllib.loads(LOCK.read_text())["package"] if row["name"] == package)
    for file in [*row.get("wheels", ()), row.get("sdist", {})]:
        if re.search(pattern, file.get("url", "")):
            return file["url"], file["hash"].removeprefix("sha256:")
    sys.exit(f"uv.lock has no {package} like {pattern}: this kind of machine was not tried")


def indexed(package: str, version: str) -> tuple[str, str]:
    """URL and SHA-256 of the source of a version, from the index's page of the package."""
    chosen = [os.environ.get(name, "") for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")]
    page = next(filter(None, [*chosen, "https://pypi.org/simple"])).rstrip("/") + f"/{package}/"
    link = rf'href="([^"#]*/{package}-{re.escape(version)}\.tar\.gz)#sha256=(\w+)"'
    if not (found := re.search(link, download(page).decode())):
        sys.exit(f"{page} names no source of {package} {version}")
    return urllib.parse.urljoin(page, found[1]), found[2]


def main(package: str, pattern: str, file: str, version: str = "") -> None:
    """See usage."""
    url, sha256 = indexed(package, version) if version else locked(package, pattern)
    content = download(url)
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit(f"{url} is not the file that was asked for: its SHA-256 differs")
    Path(file).write_bytes(content)


if __name__ == "__main__":
    main(*sys.argv[1:])
