"""A command in a process of its own, forked from one that has the libraries imported already: that is most of what a
start costs. What is ours, each process imports for itself, in the order in which the command wants it."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

LIBRARIES = (
    *("alembic.command", "alembic.runtime.migration", "httpx", "opentelemetry.trace", "psutil", "psycopg", "pydantic"),
    *("pydantic_settings", "redis", "rich.console", "rich.progress", "rich.table"),
    *("sqlalchemy.dialects.postgresql", "sqlalchemy.orm", "typer", "yaml"),
)


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


def run(
    *arguments: object,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout: float = 120,
) -> Done:
    """`secateur` with these arguments, in this folder; without an environment of its own, under ours."""
    variables = dict(os.environ if environment is None else environment)
    with TemporaryDirectory() as streams:
        files = [Path(streams, name) for name in ("in", "out", "err")]
        for file, content in zip(files, (stdin, b"", b""), strict=True):
            file.write_bytes(content)
        code = _exit_code(([str(each) for each in arguments], folder, variables, files), timeout)
        out, err = (file.read_bytes().decode() for file in files[1:])
    assert code is not None, f"it has not ended within {timeout:g} s: {out}{err}"
    return Done(code, out, err)


def _exit_code(given: tuple[list[str], Path, dict[str, str], list[Path]], timeout: float) -> int | None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, *LIBRARIES])
    process = processes.Process(target=_main, args=given)
    process.start()
    process.join(timeout)
    code = process.exitcode
    process.kill()
    process.join()
    process.close()
    return code


def _main(arguments: Sequence[str], folder: Path, variables: Mapping[str, str], files: Sequence[Path]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for number, (file, flags) in enumerate(zip(files, [os.O_RDONLY, os.O_WRONLY, os.O_WRONLY], strict=True)):
        os.dup2(os.open(file, flags), number)
    # Those that were forked are of the files that the process had before.
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["secateur", *arguments]
    from app.cli import main

    main()
