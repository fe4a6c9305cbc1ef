"""Times as text."""

from __future__ import annotations

from datetime import datetime


def rfc_3339(moment: datetime) -> str:
    """As all times of the API are written. `moment` is in UTC."""
    return moment.isoformat().replace("+00:00", "Z")
