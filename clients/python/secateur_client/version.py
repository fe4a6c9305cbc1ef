"""The version, from the installed package's metadata: one place to raise it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("secateur-client")
except PackageNotFoundError:  # a source tree that was never installed
    VERSION = "0+unknown"
