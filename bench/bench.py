#!/usr/bin/env python3
"""usage: sudo python3 bench/bench.py [--times N] [--warm]

How long a cloud takes, phase by phase: once cold (an empty folder: everything is downloaded, unpacked, compiled and
migrated; packages of the distribution are installed only where missing), then N times warm (installed already). Prints a
table of seconds, medians for the warm runs. Needs no package; run it on a machine that does nothing else.

--warm leaves the cold run out (the folder is made first, and not counted).
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOVA_PY = Path(__file__).resolve().parents[1] / "nova.py"


def timed(folder: Path, verb: str) -> tuple[float, str]:
    """Call nova.py VERB in the folder: its seconds by the clock and what it said."""
    began = time.monotonic()
    done = subprocess.run(["python3", NOVA_PY, verb], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return time.monotonic() - began, done.stderr


def round_of(folder: Path) -> dict[str, float]:
    """One cloud from run_detached to scrub: seconds of each step and each verb."""
    total, said = timed(folder, "run_detached")
    seconds = {step: float(number) for number, step in re.findall(r"^ +([\d.]+)  (.*)$", said.split("Seconds each")[-1], re.M)}
    seconds["run_detached, all of it"] = total
    for verb in ("terminate", "clean", "scrub"):
        seconds[verb] = timed(folder, verb)[0]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(usage=(__doc__ or "").removeprefix("usage: "))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--warm", action="store_true")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nova-bench-", dir=Path.home()))
    try:
        cold = round_of(folder)
        warm = [round_of(folder) for _ in range(chosen.times)]
    finally:
        if (folder / "nova/state").exists():
            timed(folder, "scrub")
        shutil.rmtree(folder)
    print(f"| step | {'' if chosen.warm else 'cold, s | '}warm, median of {chosen.times}, s |")
    print(f"| --- | {'' if chosen.warm else '--- | '}--- |")
    for step in cold:
        middle = f"{statistics.median(w[step] for w in warm):.1f}" if all(step in w for w in warm) else "-"
        first = "" if chosen.warm else f"{cold[step]:.1f} | "
        if middle != "-" or not chosen.warm:
            print(f"| {re.sub(r' into .*', ' into DIR', step)} | {first}{middle} |")


if __name__ == "__main__":
    main()
