"""What goes wrong on the command line, as a sentence and an exit code. All else is a bug and keeps its traceback."""

from __future__ import annotations

import sys
from typing import NamedTuple

from pydantic import ValidationError

from app.cli.documents import BadDocument
from secateur_client import BadAddress, ClientError, Problem, Unreachable

USAGE, REFUSED, UNREACHABLE = 2, 3, 4
_NOT_MIGRATED = ("42P01", "42703")  # PostgreSQL's undefined_table and undefined_column


class Failure(NamedTuple):
    exit_code: int
    text: str


def describe(error: Exception) -> Failure | None:
    """None for an error that nobody foresaw."""
    match error:
        case Problem():
            return Failure(REFUSED, _problem(error))
        case Unreachable():
            hint = "Is it running? `secateur up` starts one here; SECATEUR_URL names another."
            return Failure(UNREACHABLE, f"{error}\n{hint}")
        case BadAddress() | BadDocument():
            return Failure(USAGE, str(error))
        case ClientError():
            return Failure(REFUSED, str(error))
        case ValidationError(title="Settings"):
            return Failure(USAGE, _settings(error))
        case OSError(filename=str(filename), strerror=str(reason)):
            return Failure(USAGE, f"{filename}: {reason}.")
    return _of_the_stack(error) or _of_the_database(error)


def _problem(problem: Problem) -> str:
    lines = [str(problem)]
    if problem.status == 401:
        lines.append("The key comes from SECATEUR_API_KEY, or from the file api-key in --state-dir.")
    if problem.status >= 500 and problem.request_id:
        lines.append(f"Request {problem.request_id}.")
    return "\n".join(lines)


def _of_the_stack(error: Exception) -> Failure | None:
    # Only a command that imported it can fail so.
    exceptions = sys.modules.get("app.local.errors")
    if exceptions is None or not isinstance(error, exceptions.LocalError):
        return None
    return Failure(UNREACHABLE, f"{error}.")


def _of_the_database(error: Exception) -> Failure | None:
    # Only a command that used the database can fail so; the others need not load SQLAlchemy to say what happened.
    exceptions = sys.modules.get("sqlalchemy.exc")
    if exceptions is None or not isinstance(error, exceptions.DBAPIError):
        return None
    if getattr(error.orig, "sqlstate", None) in _NOT_MIGRATED:
        return Failure(UNREACHABLE, "The database has not this version's schema: run `secateur migrate`.")
    if isinstance(error, exceptions.OperationalError):
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
        return f"Wrong settings: {text}"
    name = f"SECATEUR_{loc[0]}".upper()
    return f"{name} is not set." if code == "missing" else f"{name}: {text}."
