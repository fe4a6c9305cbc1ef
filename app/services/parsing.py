"""What a client has written, from the body of its request; or the refusal that says what to mend."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from app.contract.explain import MALFORMED, MOST_ERRORS, FieldError, explain
from app.core.errors import Malformed, SecateurError, TooDeep
from app.core.objects import unique

T = TypeVar("T")


def parsed(document: bytes, adapter: TypeAdapter[T], refusal: type[SecateurError], what: str) -> T:
    """Raises Malformed, TooDeep, or the refusal with an entry a field."""
    try:
        value = adapter.validate_json(document)
    except ValidationError as error:
        raise refused(explain(error, adapter), refusal, what) from error
    refuse_repeated_keys(document)
    return value


def refuse_repeated_keys(document: bytes | str) -> None:
    """Raises Malformed where pydantic took the last of two values without a word. The document is one that it has
    accepted: Python's parser bounds neither depth nor the length of a key."""
    try:
        json.loads(document, object_pairs_hook=unique)
    except ValueError as error:
        raise Malformed(f"The key {error} in one object. Send each once.") from error


def refused(found: list[FieldError], refusal: type[SecateurError], what: str) -> SecateurError:
    if found[0].code == MALFORMED and "recursion limit" in found[0].detail:
        return TooDeep()
    if found[0].code == MALFORMED:
        return Malformed(found[0].detail + ". Send one JSON object as UTF-8.")
    if len(found) == 1:
        return refusal(f"One field of the {what} must be mended; `errors` says which.", found)
    if len(found) == MOST_ERRORS:
        return refusal(f"Many fields of the {what} must be mended; `errors` has the first {MOST_ERRORS}.", found)
    return refusal(f"{len(found)} fields of the {what} must be mended; `errors` says which.", found)
