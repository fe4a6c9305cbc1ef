"""What goes wrong on the command line, as a sentence and an exit code. Anything else is a bug and keeps its traceback."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy.exc import OperationalError

USAGE, REFUSED, UNREACHABLE = 2, 3, 4


class Failure(NamedTuple):
    exit_code: int
    text: str


def describe(error: Exception) -> Failure | None:
    """None for an error that nobody foresaw."""
    match error:
        case ValidationError(title="Settings"):
            return Failure(USAGE, _settings(error))
        case OperationalError():
            return Failure(UNREACHABLE, f"The database cannot be reached: {str(error.orig).splitlines()[0]}")
    return None


def _settings(error: ValidationError) -> str:
    # Never with the input: it may be a password.
    return "\n".join(
        _setting(detail["loc"], detail["type"], detail["msg"])
        for detail in error.errors(include_url=False, include_input=False, include_context=False)
    )


def _setting(loc: tuple[int | str, ...], code: str, message: str) -> str:
    text = message.removeprefix("Value error, ")
    if not loc:
        return f"Wrong settings: {text}."
    name = f"SECATEUR_{loc[0]}".upper()
    return f"{name} is not set." if code == "missing" else f"{name}: {text}."
