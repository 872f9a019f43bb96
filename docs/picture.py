#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A picture (SVG) of a cloud's session as it really looks: sudo python3 docs/picture.py SESSION WINDOW [LINE...] >docs/screen.svg

Each LINE is typed into the window first, and its end awaited. tmux (apt-get install tmux) is the terminal that is drawn.
"""

import functools
import html
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

COLUMNS, LINES = 120, 32
WIDTH, HEIGHT, EDGE = 8.4, 18, 12  # of a letter, and around the whole
PAPER, INK = "#16181d", "#d4d7dd"  # dark, on its own ground: it looks the same on a light page and on a dark one
COLOURS = (
    "#16181d", "#e06c75", "#98c379", "#e5c07b", "#3d6fb4", "#c678dd", "#56b6c2", "#d4d7dd",
    "#7f848e", "#ff7a85", "#b5e890", "#ffd68a", "#4f8fe6", "#de8ff5", "#6fd3e0", "#ffffff",
)  # fmt: skip


class Look(NamedTuple):
    """How a letter is drawn."""

    ink: str = INK
    paper: str = PAPER
    bold: bool = False


def tmux(*words: str) -> str:
    """A command of a tmux of our own."""
    command = ["tmux", "-L", "picture", "-f", "/dev/null", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def screen() -> list[str]:
    """The terminal's lines as they are now, with their colours."""
    return tmux("capture-pane", "-p", "-e", "-t", "session").splitlines()


def plain() -> list[str]:
    """The same without colours and empty lines; the last is the session's status line."""
    lines = (re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in screen())
    return [line for line in lines if line]


def wait_for(what: str, seen: Callable[[], object]) -> None:
    """Look until it is seen, for a minute at most."""
    deadline = time.monotonic() + 60
    while not seen():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not seen. The terminal shows:\n" + "\n".join(plain()))
        time.sleep(0.2)


def done(line: str) -> bool:
    """Was this line typed, and is there a prompt after it?"""
    return line in str(plain()) and plain()[-2].endswith(("#", "$"))


def looks(line: str) -> Iterator[tuple[str, Look]]:
    """Each letter of a line and how it looks."""
    look, turned = Look(), False
    for odd, part in enumerate(re.split(r"\x1b\[([\d;]*)m", line)):
        if not odd % 2:
            yield from ((letter, Look(look.paper, look.ink, look.bold) if turned else look) for letter in part)
            continue
        for code in (int(code or 0) for code in part.split(";")):
            kind, number = divmod(code, 10)
            if code == 0:
                look, turned = Look(), False
            elif code in (1, 22):
                look = look._replace(bold=code == 1)
            elif code in (7, 27):
                turned = code == 7
            elif kind in (3, 9) and number < 8:
                look = look._replace(ink=COLOURS[number + 8 * (kind == 9)])
            elif kind in (4, 10) and number < 8:
                look = look._replace(paper=COLOURS[number + 8 * (kind == 10)])
            elif code in (39, 49):
                look = look._replace(ink=INK) if code == 39 else look._replace(paper=PAPER)
    while True:  # the rest of the line
        yield " ", look._replace(paper=PAPER)


def drawn(lines: list[str]) -> Iterator[str]:
    """The SVG's elements: pieces of a line that look alike, each at its place and of its width, whatever the font."""
    for row, line in enumerate(lines):
        letters = [letter for letter, _ in zip(looks(line), range(COLUMNS), strict=False)]
        at, top = 0, EDGE + row * HEIGHT
        for look, group in groupby(letters, key=lambda letter: letter[1]):
            text = "".join(letter for letter, _ in group)
            if look.paper != PAPER:
                box = f'x="{EDGE + at * WIDTH:.1f}" y="{top}" width="{len(text) * WIDTH:.1f}" height="{HEIGHT}"'
                yield f'<rect {box} fill="{look.paper}"/>'
            weight = ' font-weight="bold"' if look.bold else ""
            for words in re.finditer(r"\S+( \S+)*", text):  # viewers disagree about more than one space
                left, width = EDGE + (at + words.start()) * WIDTH, len(words[0]) * WIDTH
                place = f'x="{left:.1f}" y="{top + HEIGHT - 5}" textLength="{width:.1f}" fill="{look.ink}"'
                yield f"<text {place}{weight}>{html.escape(words[0], quote=False)}</text>"
            at += len(text)


def picture(lines: list[str], title: str) -> str:
    """The whole SVG."""
    width, height = round(COLUMNS * WIDTH + 2 * EDGE), LINES * HEIGHT + 2 * EDGE
    font = 'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="14"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    ground = f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>'
    return "\n".join([f"{head} {font}>", f"<title>{html.escape(title)}</title>", ground, *drawn(lines), "</svg>", ""])


def main(session: str, window: str, *lines: str) -> None:
    size = ("-x", str(COLUMNS), "-y", str(LINES))
    tmux("new-session", "-d", "-s", "session", *size, f"screen -x {session} -p {window}", ";", "set-option", "status", "off")
    try:
        to_window = ["screen", "-S", session, "-p", window, "-X"]
        wait_for(f"the window {window} in the status line", lambda: plain() and re.search(rf"\d\* {window}\b", plain()[-1]))
        if lines:
            subprocess.run([*to_window, "stuff", "\f"], check=True)  # the shell's Ctrl-L: begin at the top
        for line in lines:
            subprocess.run([*to_window, "stuff", line + "\r"], check=True)
            wait_for(f"{line} and a prompt after it", functools.partial(done, line))
        print(picture(screen(), f"the screen session {session} of a running cloud, window {window}"), end="")
    finally:
        tmux("kill-server")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
