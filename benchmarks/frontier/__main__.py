"""`python -m benchmarks.frontier DATA`: run the recipe, keep its networks, write `benchmarks/frontier.md` and the plot.

DATA holds MNIST in torchvision's layout. Each seed takes about two hours of one core. What was done is kept in the
folder `--work` and not done again. Without DATA, only text and plot are made, of what `benchmarks/frontier/models` has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.frontier.recipe import chains
from benchmarks.frontier.results import kept
from benchmarks.frontier.seeds import run_seeds
from benchmarks.frontier.writing import draw, write
from worker.engine.errors import EngineError

HERE = Path(__file__).parent
MODELS = HERE / "models"


def main(given: Sequence[str] | None = None) -> None:
    """With the command line's arguments unless others are given."""
    arguments = _parser().parse_args(given)
    if arguments.data is not None:
        try:
            run_seeds(arguments.seeds, arguments.lines, data=arguments.data, work=arguments.work, models=MODELS)
        except EngineError as error:
            sys.exit(str(error))
    results = kept(MODELS)
    (HERE.parent / "frontier.md").write_text(write(results))
    (HERE.parent / "frontier.png").write_bytes(draw(results))


def _parser() -> argparse.ArgumentParser:
    every = sorted({chain.line for chain in chains(0)})
    parser = argparse.ArgumentParser(
        description="Prune MNIST networks as far as they go, and write down how far that is."
    )
    parser.add_argument(
        "data", type=Path, nargs="?", help="folder with MNIST/raw; without it, only the texts are written"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lines", nargs="+", choices=every, default=every, help="parts of the recipe")
    parser.add_argument("--work", type=Path, default=Path(".frontier"), help="folder for what has been done already")
    return parser


if __name__ == "__main__":
    main()
