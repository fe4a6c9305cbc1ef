"""`python -m benchmarks.bench`: measure, keep the figures in `benchmarks/results.json`, and write text and picture.

Nothing else should work the machine meanwhile. Parts that are not measured again keep the figures of their own run;
what is measured quickly is told and not kept, unless a folder is named.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from benchmarks.bench.drawing import draw
from benchmarks.bench.measuring import Setting
from benchmarks.bench.parts import PARTS, Measured
from benchmarks.bench.rows import Machine, Part, Results, Row
from benchmarks.bench.writing import figure, verdict, write

FOLDER = Path(__file__).parent.parent


def main() -> None:
    asked = _parser().parse_args()
    setting = Setting(asked.data_dir, asked.quick)
    out = asked.out or (None if asked.quick else FOLDER)
    for name in asked.only or PARTS:
        print(f"{name}: {PARTS[name].title} …", flush=True)
        part = measured(name, PARTS[name], setting)
        for row in part.rows:
            print(f"  {_line(row)}", flush=True)
        # After each part: hours of measuring are not to be lost with the last.
        if out is not None:
            keep(part, out)


def measured(name: str, part: Measured, setting: Setting) -> Part:
    machine, started = Machine.here(), time.perf_counter()
    rows, details = part.measure(setting)
    return Part(
        name=name,
        title=part.title,
        rows=tuple(rows),
        details=details,
        quick=setting.quick,
        seconds=time.perf_counter() - started,
        machine=machine,
    )


def keep(part: Part, folder: Path) -> None:
    """Into `results.json`, and all that is there into `results.md` and `results.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    results = Results.read(folder / "results.json").renewed(part, list(PARTS))
    (folder / "results.json").write_text(results.model_dump_json(indent=1) + "\n")
    (folder / "results.md").write_text(write(results))
    (folder / "results.png").write_bytes(draw(results))


def _line(row: Row) -> str:
    return f"{row.what}: {figure(row)} {verdict(row)}".replace("**", "").rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench", description="Measure how fast it is, each part against a plain alternative."
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(found) if (found := os.environ.get("DATA_DIR")) else None,
        help="folder that holds MNIST/raw; digits take its place without it",
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter work: to see whether it works")
    parser.add_argument("--out", type=Path, help="folder for results.json, results.md and results.png")
    return parser


if __name__ == "__main__":
    main()
