#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: machine-files.py ROOT

Write into the Debian in ROOT what it has of this machine: its host name, its name servers, the certificates that it trusts.
A file that says this already is left alone. It needs python3's standard library alone.
"""

import ipaddress
import os
import re
import socket
import sys
from pathlib import Path

# Where systemd-resolved and NetworkManager name the servers that they ask themselves.
RESOLVERS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf")
# The first is Debian's own place; the others name what the machine's owner trusts besides, for one program or the other.
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
TRUSTED = "/etc/ssl/nova-py.crt"
NAMING = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")


def text_of(path: str) -> str:
    """What a file says; "" where it is not there."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def name_servers(files: tuple[str, ...] = RESOLVERS) -> str:
    """resolv.conf: the first of `files` whose servers instances can reach too; the first of all if none is like that."""
    for path in files:
        found = [word.partition("%")[0] for word in re.findall(r"^nameserver\s+(\S+)", text_of(path), re.M)]
        known = [ipaddress.ip_address(word) for word in found]
        if any(not (each.is_loopback or each.is_link_local) for each in known):
            return text_of(path)
    return text_of(files[0])


def main(root: Path) -> None:
    """See usage."""
    # A name of its own: what the network's DHCP calls this machine may change, and nova would take it for another host.
    hosts = f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n::1 localhost ip6-localhost\n"
    files = {"/etc/hosts": hosts, "/etc/resolv.conf": name_servers()}
    for path in {CERTIFICATES, *(os.environ.get(name, "") for name in NAMING)} - {""}:
        files |= {path: text_of(path)} if Path(path).is_file() else {}
    if trusted := text_of(os.environ.get("SSL_CERT_FILE") or CERTIFICATES):  # once more, where no package of ROOT writes
        files[TRUSTED] = trusted
    for path, text in files.items():
        place = root / path.lstrip("/")
        if not place.is_symlink() and text_of(str(place)) == text:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # a link would lead out of ROOT
        place.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
