"""Limits for tests that are not about them."""

from __future__ import annotations

from app.core.limits import UNLIMITED, Limits

NO_LIMITS = Limits(UNLIMITED, UNLIMITED, UNLIMITED, UNLIMITED)
