"""Schemathesis against the running service: requests that the description allows and some that it does not, made up,
sent alone and in sequences along the links between operations; every answer must be one that it describes.

`python -m tests.fuzz` does it for long, with a worker that runs what is submitted.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from app.local import Stack, stack

# No description can say which cursors a list has given, which jobs there are to build on, what a state dict or a data
# set is, which key is new, which copy of a job is the present one, that no label and no job is given twice,
# which hosts may be told of jobs, how many of them there are already, and what was deleted a moment ago.
# A stream of a job that waits has no end, and no test of a description should wait for a change.
CONFIG = """\
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 410, 429, "5xx"]
[[operations]]
include-name = "GET /v1/jobs/{job_id}/events/stream"
enabled = false
[[operations]]
include-name = "GET /v1/jobs/{job_id}"
parameters = { "query.wait" = 0 }
[[operations]]
include-name = "GET /v1/jobs"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 422]
[[operations]]
include-name = "GET /v1/compare"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 410, 422]
[[operations]]
include-name = "PATCH /v1/jobs/{job_id}"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 410, 412, 422]
[[operations]]
include-name = "POST /v1/jobs/{job_id}/rerun"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 410, 422]
[[operations]]
include-name = "POST /v1/jobs"
checks.positive_data_acceptance.expected-statuses = ["2xx", 422]
[[operations]]
include-name = "POST /v1/checkpoints"
checks.positive_data_acceptance.expected-statuses = ["2xx", 422]
[[operations]]
include-name = "POST /v1/datasets"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 422]
[[operations]]
include-name = "GET /v1/datasets"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 422]
[[operations]]
include-name = "POST /v1/webhooks"
checks.positive_data_acceptance.expected-statuses = ["2xx", 409, 422]
[[operations]]
include-name = "PATCH /v1/webhooks/{webhook_id}"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 422]
[[operations]]
include-name = "GET /v1/webhooks/{webhook_id}/deliveries"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404]
"""


def command(running: Stack, folder: Path, *, phases: str, examples: int, seed: int) -> list[str]:
    """What runs Schemathesis in `folder`, with all checks; it exits with 0 when it found nothing."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    return [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {running.api_key}"),
        *("--phases", phases, "--max-examples", str(examples), "--seed", str(seed)),
        *("--no-color", "--generation-database", "none", "--warnings", "off"),
    ]


ENV = {"SECATEUR_WEBHOOK_ALLOW_PRIVATE": "true", "SECATEUR_REQUESTS_PER_MINUTE": "none"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Made-up requests, held against the description.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--examples", type=int, default=200, help="Of an operation, and sequences in all.")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as name,
        stack(state_dir=Path(name) / "state", workers=1, durable=False, env=ENV) as running,
    ):
        phases = "examples,coverage,fuzzing,stateful"
        run = command(running, Path(name), phases=phases, examples=given.examples, seed=given.seed)
        sys.exit(subprocess.run(run, cwd=name, check=False).returncode)


if __name__ == "__main__":
    main()
