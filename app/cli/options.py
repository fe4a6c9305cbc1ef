"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

STATE_DIR = Path(".secateur")

StateDir: TypeAlias = Annotated[
    Path, typer.Option(help="Folder of the embedded stack: its data, and the first key in api-key.")
]
DataDir: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder with data sets in torchvision's layout, such as MNIST/raw/….")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the raw resource as JSON, for scripts.")]
JobId: TypeAlias = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, job_….")]
