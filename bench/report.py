# SPDX-License-Identifier: Apache-2.0
"""What nova.log tells of a run_detached; bench.py's tables and pictures (SVG that looks as docs/screen.svg does)."""

import re
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from typing import NamedTuple

# A dark window, so it can be read on any page; rich's colours.
STYLE = """text { fill: #c5c8c6; stroke: #292929; stroke-width: 4; paint-order: stroke; font: 13px 'Fira Code', monospace }
.title { font: bold 18px arial, sans-serif } .step { fill: #608ab1 } .service { fill: #98a84b } .point { fill: #d0b344 }
.grid { stroke: #4b4e55; fill: none } .line { stroke: #68a0b3; stroke-width: 2; fill: none }
.window { fill: #292929; stroke: rgba(255,255,255,0.35) }"""
LIGHTS = """<circle cx="26" cy="22" r="7" fill="#ff5f57"/><circle cx="48" cy="22" r="7" fill="#febc2e"/>
<circle cx="70" cy="22" r="7" fill="#28c840"/>"""

ALL = "run_detached, all of it"


class Start(NamedTuple):
    """A run_detached: when it was called, when it was done (seconds since the epoch), and its nova.log."""

    called: float
    done: float
    log: str


class Bar(NamedTuple):
    """A step of run_detached, or a service: seconds since the epoch."""

    name: str
    kind: str
    begin: float
    end: float


def bars(log: str) -> list[Bar]:
    """What one run did, in its order. A service: from its window until nova.py saw it answer, or to the end of that step."""
    told, _, ending = log.partition("Seconds each step took")
    stamped = re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (.*)$", told, re.M)
    lines = [(datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").timestamp(), said) for when, said in stamped]
    took = {name: float(seconds) for seconds, name in re.findall(r"^\S+ \S+ +([\d.]+)  (\S.*)$", ending, re.M)}
    steps, opened, answered = list[Bar](), dict[str, float](), dict[str, float]()
    for when, said in lines:
        if found := re.match(r" *[\d.]+ s  (.+)", said):
            end = when + took[found[1]] if found[1] in took else lines[-1][0]
            steps.append(Bar(re.sub(r" into .*", " into DIR", found[1]), "step", when, end))
        elif found := re.match(r"(\S+) \(.+\): ready after", said):
            answered.setdefault(found[1], when)
        elif re.match(r" *\+ screen -S ", said):
            opened |= dict.fromkeys(re.findall(r" -t (\S+) sh ", said), when)
    services = list[Bar]()
    for name, when in opened.items():
        around = [step.end for step in steps if step.begin <= when <= step.end + 0.1]  # it is told to a tenth
        services.append(Bar(name, "service", when, answered.get(name) or max([when, *around[-1:]])))
    return sorted(steps + services, key=lambda bar: bar.begin)


def until(start: Start, step: str) -> float:
    """Seconds from the call to the end of a step."""
    ends = [bar.end for bar in bars(start.log) if bar.name == step]
    if not ends:
        raise RuntimeError(f"nova.log tells of no step {step!r}")
    return ends[0] - start.called


def phases(start: Start) -> dict[str, float]:
    """Seconds of each step, and of all of it."""
    return {**{bar.name: bar.end - bar.begin for bar in bars(start.log) if bar.kind == "step"}, ALL: start.done - start.called}


# ---- Tables, in Markdown ----


def shown(value: float, unit: str) -> str:
    return f"{value:.{2 if unit == 'GB' else 1}f} {unit}"


def table(*lines: Sequence[str]) -> str:
    """The first line has the columns' names."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def table_of_steps(cold: dict[str, float], warm: Sequence[dict[str, float]]) -> str:
    """The median of each that all had; before it the cold one's, where there was one."""
    lines = [["step", "cold, s", f"median of {len(warm)}, s"]]
    for step in sorted({**cold, **warm[0]}, key=lambda step: step == ALL):
        all_had = all(step in each for each in warm)
        if step in cold or all_had:
            middle = f"{statistics.median(each[step] for each in warm):.1f}" if all_had else "-"
            lines.append([step, f"{cold[step]:.1f}" if step in cold else "-", middle])
    return table(*(line if cold else [line[0], line[2]] for line in lines))


# ---- Pictures ----


def text(x: float, y: float, words: str, where: str = "start", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{where}">{escape(words)}</text>'


def rect(kind: str, words: str, *place: float) -> str:
    """From x, y on, so wide, so high; the words show where a pointer is on it."""
    box = " ".join(f'{name}="{value:.1f}"' for name, value in zip(("x", "y", "width", "height"), place, strict=True))
    return f'<rect class="{kind}" {box} rx="{8 if kind == "window" else 2}"><title>{escape(words)}</title></rect>'


def framed(title: str, width: int, height: int, *parts: str) -> str:
    """The picture: these parts in a window."""
    head = f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>'
    window = rect("window", title, 1, 1, width - 2, height - 2)
    return "\n".join([head, window, LIGHTS, text(width / 2, 27, title, "middle", "title"), *parts, "</svg>\n"])


def timeline(start: Start) -> str:
    """A run_detached, from its call on: a bar a step and a bar a service."""
    left, wide, high, top, those = 450, 680, 20, 104, bars(start.log)
    total, bottom, parts = max(start.done, *(bar.end for bar in those)) - start.called, top + high * len(those), list[str]()
    every = next(seconds for seconds in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if seconds * 12 >= total)
    for second in range(0, int(total) + 1, every):
        x = left + wide * second / total
        parts += [f'<path class="grid" d="M{x:.1f} {top - 8}V{bottom}"/>', text(x, top - 14, f"{second} s", "middle")]
    for x, kind, words in ((20, "step", "step"), (100, "service", "service, until nova.py saw it answer")):
        parts += [rect(kind, words, x, 56, 14, 14), text(x + 22, 68, words)]
    for y, bar in zip(range(top, bottom, high), those, strict=True):
        x, width = left + wide * (bar.begin - start.called) / total, max(1.5, wide * (bar.end - bar.begin) / total)
        parts += [rect(bar.kind, bar.name, x, y + 3, width, high - 6), text(left - 12, y + 15, bar.name[:54], "end")]
        parts.append(text(x + width + 6, y + 15, f"{bar.end - bar.begin:.1f}"))
    return framed("run_detached, second by second", left + wide + 70, bottom + 20, *parts)


def plot(left: int, title: str, across: str, points: Sequence[tuple[float, float]]) -> Iterator[str]:
    """A small one: points, joined, with their numbers; its axes begin at 0."""
    top, wide, high, right, most = 90, 420, 220, max(x for x, _ in points), 1.2 * max(y for _, y in points) or 1
    places = [(left + wide * x / right, top + high * (1 - y / most)) for x, y in points]
    yield f'<path class="grid" d="M{left} {top}v{high}h{wide}"/>' + text(left, 72, title) + text(left, top + high + 44, across)
    yield f'<path class="line" d="M{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
    for (x, y), (count, value) in zip(places, points, strict=True):
        yield f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' + text(x, y - 10, f"{value:.3g}", "middle")
        yield text(x, top + high + 20, f"{count:g}", "middle")


def plots(booted: Sequence[Sequence[float]], hosts: Sequence[Sequence[float]], spread: Sequence[Sequence[float]]) -> str:
    """What more and more of them take: the numbers of bench.py's tables."""
    one = plot(50, "seconds an instance", "instances, all at once", [(line[0], line[2]) for line in booted])
    two = plot(560, "MB a host", "hosts (nova-compute, fake driver)", [(line[0], line[3]) for line in hosts])
    told = "; ".join(f"{line[0]:,.0f}: {line[2]:.2f} s each" for line in spread)
    return framed("more and more", 1030, 405, *one, *two, text(560, 384, f"instances on {hosts[-1][0]:.0f} hosts: {told}"))
