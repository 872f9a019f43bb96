# SPDX-License-Identifier: Apache-2.0
"""docs/picture.py draws what a terminal shows."""

import importlib.util
from xml.etree import ElementTree

from rich.text import Text

import nova

SPEC = importlib.util.spec_from_file_location("picture", nova.HERE / "docs/picture.py")
assert SPEC and SPEC.loader
picture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(picture)

LINES = "plain  \x1b[1;32mgreen & bold\x1b[0m\n\x1b[7mturned\x1b[27m \x1b[97;104mwindow\x1b[39;49m <end>"


def test_it_is_a_picture_of_what_stands_there_and_fetches_nothing() -> None:
    drawn = picture.picture(Text.from_ansi(LINES), "a title")
    root = ElementTree.fromstring(drawn)  # noqa: S314 (our own)
    said = " ".join(e.text or "" for e in root.iter() if e.tag.endswith("text")).replace("\xa0", " ")
    for words in ("a title", "green & bold", "turned", "window", "<end>"):
        assert words in said
    assert "url(http" not in drawn.replace('"', "")
