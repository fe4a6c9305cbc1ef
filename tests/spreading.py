"""Which tests go to one process, where there are several: those of a file, and those that use the same servers, so that
these are started once."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

SERVED_ALIKE = {
    "the service": (
        *("tests/api/", "tests/cli/", "tests/client/test_client.py", "tests/client/test_faults.py"),
        *("tests/local/test_stack.py", "tests/local/test_up.py", "tests/openapi/"),
        *("tests/worker/test_process.py", "tests/worker/test_trace.py", "tests/benchmarks/test_load.py"),
    ),
    "the service that is hurt": ("tests/faults/",),
}
"""By the beginning of their paths."""


class BySharing(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        for servers, paths in SERVED_ALIKE.items():
            if nodeid.startswith(paths):
                return servers
        scope: str = super()._split_scope(nodeid)
        return scope
