# SPDX-License-Identifier: Apache-2.0
"""CONSOLES=1: an instance's screen in a real browser, its serial port by websocket; for nobody without the token."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import websocket
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from .conftest import GUEST_USER, USER, Machine, ask, eventually, on

pytestmark = on("vlan")

LOGIN = "ami-tty, a test image. Log in as root; on this console there is no password."
KINDS = {"novnc": 6080, "serial": 6083}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync --window-size=1000,700"
)


@pytest.fixture(scope="module")
def guest(cloud: Machine) -> Iterator[Machine]:
    """The cloud with an instance `screen` in it, whose consoles are asked for."""
    cloud.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --wait screen")
    yield cloud
    cloud.shell("openstack server delete --wait screen")


def url(cloud: Machine, kind: str, server: str = "screen") -> str:
    """A new address, with a new token, of a server's console."""
    return str(cloud.openstack(f"console url show --{kind} {server}")["url"])


def console_log(cloud: Machine) -> list[str]:
    """The lines of the instance's console log."""
    return cloud.shell("openstack console log show screen").splitlines()


# ---- The screen, in a browser ----


@pytest.fixture(scope="module")
def browser(cloud: Machine) -> Iterator[webdriver.Chrome]:
    """Debian's chromium, without a window; installed where it is missing."""
    if not shutil.which("chromedriver"):
        names = ("chromium", "chromium-driver")
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *names], check=True, capture_output=True)
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS.split():
        options.add_argument(flag)
    LETTERS.update(font(cloud))
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


PIXELS = """
const canvas = document.querySelector('canvas'), rows = [];
if (!canvas || !canvas.width) return rows;
const rgba = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
for (let y = 0; y < canvas.height; y++) {
    let row = '';
    for (let i = 4 * y * canvas.width; i < 4 * (y + 1) * canvas.width; i += 4)
        row += rgba[i] + rgba[i + 1] + rgba[i + 2] > 200 ? '1' : '0';
    rows.push(row);
}
return rows;
"""
LETTER_A = bytes((0, 0, 0x10, 0x38, 0x6C, 0xC6, 0xC6, 0xFE, 0xC6, 0xC6, 0xC6, 0xC6, 0, 0, 0, 0))


LETTERS: dict[bytes, str] = {}  # by their pixels


def font(cloud: Machine) -> dict[bytes, str]:
    """The guest's letters, eight by sixteen pixels each: those of its graphics card's BIOS, where they stand in a row."""
    rom = (cloud.folder / "nova/state/root/usr/share/seabios/vgabios-virtio.bin").read_bytes()
    assert rom.count(LETTER_A) == 1, "this BIOS has another font"
    first = rom.index(LETTER_A) - 16 * ord("A")
    return {rom[first + 16 * code : first + 16 * code + 16]: chr(code) for code in range(126, 31, -1)}


def read_screen(browser: webdriver.Chrome) -> list[str]:
    """The lines of text on the canvas, each letter told by its pixels (VGA's text mode: 80 columns of 9, 25 lines of 16)."""
    rows: list[str] = browser.execute_script(PIXELS)  # type: ignore[no-untyped-call]
    if [len(rows), len(rows[0]) if rows else 0] != [400, 720]:
        return []  # not there yet

    def letter(line: int, column: int) -> str:
        pixels = bytes(int(rows[16 * line + y][9 * column : 9 * column + 8], 2) for y in range(16))
        return LETTERS.get(pixels, "?")  # the cursor is none

    return ["".join(letter(line, column) for column in range(80)).rstrip() for line in range(25)]


SHIFTED = dict(zip('$()*|>"', "4908\\.'", strict=True))  # a US keyboard, as QEMU has it


def type_line(browser: webdriver.Chrome, text: str) -> None:
    """Press the keys of a line, and Enter, one after the other, as a person would."""
    browser.find_element("css selector", "canvas").click()
    keys = ActionChains(browser)
    for key in text:
        if plain := SHIFTED.get(key, key.lower() if key.isupper() else ""):
            keys.key_down(Keys.SHIFT)
        keys.send_keys(plain or key)
        if plain:
            keys.key_up(Keys.SHIFT)
    keys.send_keys(Keys.ENTER).perform()


def shows(browser: webdriver.Chrome, line: str, seconds: float = 60) -> None:
    """The screen has this line, sooner or later."""
    eventually(f"{line!r} on the screen", lambda: [seen for seen in read_screen(browser) if seen == line], seconds)


def test_the_page_shows_the_guests_login_and_takes_a_command(guest: Machine, browser: webdriver.Chrome) -> None:
    browser.get(url(guest, "novnc"))
    shows(browser, LOGIN, 120)
    eventually("the guest's last words", lambda: "ami-tty: ssh ready" in read_screen(browser), 120)
    type_line(browser, "root")
    eventually("a prompt", lambda: [line for line in read_screen(browser) if line.startswith("~ #")])
    told = lambda: [line for line in console_log(guest) if line.endswith("42")]  # behind its login's prompt, mostly
    assert told() == []
    type_line(browser, "echo $((6*7)) | tee /dev/ttyS0")
    shows(browser, "42")
    eventually("the same in the console log", told)


@pytest.mark.parametrize("path", ["", "?path=%3Ftoken%3D00000000-0000-4000-8000-000000000000"], ids=["no token", "a wrong one"])
def test_the_page_shows_nothing_without_the_token(guest: Machine, browser: webdriver.Chrome, path: str) -> None:
    browser.get(f"http://{guest.host_ip()}:6080/vnc_lite.html{path}")
    status = lambda: browser.find_element("id", "status").text
    eventually("the page's refusal", lambda: status() in ("Disconnected", "Something went wrong, connection is closed"))
    assert read_screen(browser) == []


# ---- The serial port, and what both have in common: the websocket ----


def talk(address: str, line: str, until: str, **options: Any) -> str:
    """What comes over the websocket after `line` was sent, up to `until` or to its end."""
    heard = ""
    with contextlib.suppress(websocket.WebSocketConnectionClosedException, ConnectionError):
        connection = websocket.create_connection(address, timeout=60, **options)
        with contextlib.closing(connection):
            if line:
                connection.send_binary(line.encode())
            while until not in heard:
                code, data = connection.recv_data()
                if code == websocket.ABNF.OPCODE_CLOSE:
                    break
                heard += data.decode(errors="replace")
    return heard


def greeting(address: str, **options: Any) -> str:
    """What a console says first: a VNC server its version, a getty its prompt after Enter. Nothing where it is refused."""
    return talk(address, *(("\r", "login: ") if ":6083" in address else ("", "RFB 003.008\n")), **options)


def websocket_url(cloud: Machine, kind: str, server: str = "screen") -> str:
    """The websocket's address: the page makes it from its own."""
    return url(cloud, kind, server).replace("http:", "ws:").replace("vnc_lite.html?path=%3Ftoken%3D", "?token=")


def test_the_serial_console_takes_a_command(guest: Machine) -> None:
    eventually("the login text in the console log", lambda: LOGIN in console_log(guest), 120)
    address = url(guest, "serial")
    assert "login: " in talk(address, "\r", "login: ")
    assert "built-in shell" in talk(address, "root\r", "# ")
    assert "\n1764\r" in talk(address, "echo $((42*42))\r", "1764\r")
    eventually("the same in the console log", lambda: "1764" in console_log(guest))
    talk(address, "exit\r", "login: ")


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_token_opens_a_console(guest: Machine, kind: str) -> None:
    address = websocket_url(guest, kind)
    place, _, token = address.partition("?token=")
    assert greeting(address)
    assert greeting(address, suppress_origin=True), "a program that is no browser says no origin"
    for wrong in ("", "?token=", f"?token={uuid.uuid4()}", f"?token={token[:-1]}", "?token=%25"):
        assert greeting(place + wrong) == "", wrong
    for origin in ("http://elsewhere.example", "null", f"https://{guest.host_ip()}"):
        assert greeting(address, origin=origin) == "", origin
    assert greeting(address), "and the token is still good"


def test_a_token_ends_after_ten_minutes(guest: Machine) -> None:
    address = websocket_url(guest, "serial")

    def sql(line: str) -> str:
        socket = "--socket=/run/nova.py/state/mysql/sock"
        return guest.nova("shell", "mariadb", "--no-defaults", socket, "-N", "nova_cell1", "-e", line)

    left = int(sql("SELECT MAX(expires) - UNIX_TIMESTAMP() FROM console_auth_tokens"))
    assert 540 <= left <= 600
    assert greeting(address)
    sql(f"UPDATE console_auth_tokens SET expires = expires - {left} - 1")  # noqa: S608 (so much later)
    assert greeting(address) == ""


def test_a_token_ends_with_its_instance(guest: Machine) -> None:
    guest.shell("openstack server create --image ami-tty --flavor m1.tiny --network private --wait gone")
    addresses = [websocket_url(guest, kind, "gone") for kind in KINDS]
    assert all(greeting(address) for address in addresses)
    guest.shell("openstack server delete --wait gone")
    assert [greeting(address) for address in addresses] == ["", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_listens_on_host_ip_alone_and_not_as_root(cloud: Machine, kind: str) -> None:
    here = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == KINDS[kind]]
    assert [c.laddr.ip for c in here] == [cloud.host_ip()]
    assert psutil.Process(here[0].pid).uids().effective == USER


def test_the_proxy_lists_no_folder(cloud: Machine) -> None:
    with socket.create_connection((cloud.host_ip(), 6080), 10) as connection:
        connection.sendall(b"GET /core/ HTTP/1.0\r\n\r\n")
        assert b" 404 " in connection.makefile("rb").readline()


# ---- QEMU's own ports, which ask for no password ----


def guests_ports() -> list[int]:
    """Where the instances' QEMUs listen; on loopback, all of them."""
    found = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid]
    mine = [c.laddr for c in found if psutil.Process(c.pid).name().startswith("qemu-system")]
    assert {place.ip for place in mine} <= {"127.0.0.1"}
    return sorted(place.port for place in mine)


def connects(user: str | int, port: int) -> bool:
    """Does a connection of this user's to a port on loopback come about?"""
    line = ["setpriv", f"--reuid={user}", "--clear-groups", "timeout", "10", "bash", "-c", f"true </dev/tcp/127.0.0.1/{port}"]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


def test_other_users_of_the_machine_do_not_reach_the_instances_ports(guest: Machine) -> None:
    ports = guests_ports()
    assert ports and {26000, 26500} <= set(ports) <= set(range(26000, 27000))
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert connects("nobody", other.getsockname()[1]), "other ports are none of our business"
    assert [port for port in ports if connects("nobody", port) or connects(GUEST_USER, port)] == []
    assert [port for port in ports if not connects(USER, port) or not connects("root", port)] == []
    ask("nft", "delete", "chain", "ip", "nova_py", "consoles")
    try:
        assert [port for port in ports if not connects("nobody", port)] == [], "without the rule everybody does"
    finally:
        subprocess.run(["nft", "-f", str(guest.folder / "nova/state/conf/consoles.nft")], check=True)
    assert [port for port in ports if connects("nobody", port)] == []
