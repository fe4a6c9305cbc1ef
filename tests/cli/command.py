"""One command in a process of its own, forked from one that has the libraries imported already: that is most of what a
start costs. What is ours, each process imports for itself, in the order in which the command wants it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = ["httpx", "pydantic", "pydantic_settings", "rich.console", "rich.progress", "rich.table", "typer", "yaml"]


def run(arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], files: Sequence[Path]) -> int | None:
    """The exit code of `secateur` with these arguments; None when it has not ended in time. `files` are its standard
    input, output and error."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, *LIBRARIES])
    process = processes.Process(target=_main, args=(list(arguments), folder, dict(environment), list(files)))
    process.start()
    process.join(120)
    code = process.exitcode
    process.kill()
    process.join()
    process.close()
    return code


def _main(arguments: Sequence[str], folder: Path, environment: Mapping[str, str], files: Sequence[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, (file, flags) in enumerate(zip(files, [os.O_RDONLY, os.O_WRONLY, os.O_WRONLY], strict=True)):
        os.dup2(os.open(file, flags), number)
    # Those that were forked are of the files that the process had before.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(*each, closefd=False) for each in ((0,), (1, "w"), (2, "w")))
    from app.cli import main

    sys.argv = ["secateur", *arguments]
    main()
