"""Every pattern that a text of a client's must match, and in words what it allows: nobody should have to read one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

UNPRINTABLE: Final = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"
"""Control characters, ends of lines, and what turns the direction of the text that follows, as characters of a class:
names end up in logs, headers, terminals and pictures."""

_PRINTABLE = f"[^{UNPRINTABLE}]"
_LABEL_KEY = r"[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?"
_JOB_ID = r"job_[0-9a-f]{32}"

MOST_COMPARED: Final = 8
"""Jobs, side by side."""

JOB_ID: Final = f"^{_JOB_ID}$"
JOB_IDS: Final = f"^{_JOB_ID}(,{_JOB_ID}){{1,{MOST_COMPARED - 1}}}$"
DISPLAY_NAME: Final = f"^{_PRINTABLE}+$"
LABEL_KEY: Final = f"^{_LABEL_KEY}$"
LABEL_VALUE: Final = f"^{_PRINTABLE}*$"
LABEL: Final = f"^{_LABEL_KEY}:{_PRINTABLE}{{0,128}}$"
SHA256: Final = "^[0-9a-f]{64}$"
WEBHOOK_URL: Final = "^https?://"
IDEMPOTENCY_KEY: Final = "^[!-~]*$"

_ONE_LINE = "write one line, without control characters and signs that turn the direction of text"
_KEY = "1 to 63 of a-z, 0-9, '.', '_', '-' and '/', with a letter or a digit at both ends"

IN_WORDS: Mapping[str, str] = MappingProxyType(
    {
        JOB_ID: "write an id as the service gives it: job_ and 32 digits or letters from a to f",
        JOB_IDS: f"write two to {MOST_COMPARED} job ids with commas in between, such as job_…,job_…",
        DISPLAY_NAME: _ONE_LINE,
        LABEL_KEY: f"write a label's key as {_KEY}",
        LABEL_VALUE: _ONE_LINE,
        LABEL: f"write key:value; the key has {_KEY}, the value at most 128 characters on one line",
        SHA256: "write a sha256 as 64 digits or letters from a to f",
        WEBHOOK_URL: "write a URL that begins with https://, or with http:// where the service's operator allows it",
        IDEMPOTENCY_KEY: "write ASCII letters, digits and signs alone, without spaces",
    }
)
"""What to do, where the pattern does not match."""
