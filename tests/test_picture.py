# SPDX-License-Identifier: Apache-2.0
"""docs/picture.py draws what a terminal shows."""

import importlib.util
from xml.etree import ElementTree

import nova

SPEC = importlib.util.spec_from_file_location("picture", nova.HERE / "docs/picture.py")
assert SPEC and SPEC.loader
picture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(picture)


def test_each_piece_of_text_stands_where_the_terminal_has_it_and_in_its_colour() -> None:
    lines = ["plain  \x1b[1;32mgreen & bold\x1b[0m", "\x1b[7mturned\x1b[27m \x1b[97;104mwindow\x1b[39;49m <end>"]
    root = ElementTree.fromstring(picture.picture(lines, "a title"))  # noqa: S314 (our own)
    texts = [e for e in root if e.tag.endswith("text")]
    said = [(e.text, e.get("fill"), e.get("font-weight")) for e in texts]
    assert said == [
        ("plain", picture.INK, None),
        ("green & bold", picture.COLOURS[2], "bold"),
        ("turned", picture.PAPER, None),
        ("window", picture.COLOURS[15], None),
        ("<end>", picture.INK, None),
    ]
    column = [(float(e.get("x", 0)) - picture.EDGE) / picture.WIDTH for e in texts]
    assert [round(at) for at in column] == [0, 7, 0, 7, 14]
    boxes = [(e.get("fill"), e.get("width")) for e in root if e.tag.endswith("rect") and e.get("x")]
    assert boxes == [(picture.INK, "50.4"), (picture.COLOURS[12], "50.4")]
