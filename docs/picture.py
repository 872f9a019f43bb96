#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A picture (SVG) of a cloud's session as it really looks: sudo .tool/env/bin/python docs/picture.py SESSION WINDOW [LINE...]

Each LINE is typed into the window first, and its end awaited. tmux (apt-get install tmux) is the terminal that is drawn.
"""

import functools
import io
import re
import subprocess
import sys
import time
from collections.abc import Callable

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS, LINES = 150, 34
# As rich has it, but for the font that it would fetch from elsewhere.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def tmux(*words: str) -> str:
    """A command of a tmux of our own."""
    command = ["tmux", "-L", "picture", "-f", "/dev/null", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def shown() -> Text:
    """The terminal as it is now, with its colours."""
    return Text.from_ansi(tmux("capture-pane", "-p", "-e", "-t", "session"))


def plain() -> list[str]:
    """Its lines that are not empty; the last is the session's status line."""
    return [line.rstrip() for line in shown().plain.splitlines() if line.strip()]


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


def picture(text: Text, title: str) -> str:
    """The SVG of a terminal that shows this text."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(text, no_wrap=True, highlight=False)
    return console.export_svg(title=title, code_format=FORMAT, unique_id="nova")


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
        print(picture(shown(), f"screen -x {session}"), end="")
    finally:
        tmux("kill-server")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
