"""The Python client of the service: synchronous, small, over HTTP alone.

    from pathlib import Path

    from app.client import Client

    with Client("http://127.0.0.1:8000", api_key) as client:
        job = client.submit({"kind": "train", "dataset": {"name": "digits"}, "pruning": {"method": "threshold"}})
        for job in client.wait(job["id"]):
            print(job["status"], job["phase"], job["progress"])
        if job["status"] != "succeeded":
            raise SystemExit(job["error"])
        for artifact in client.artifacts(job["id"]):
            print(client.download(job["id"], artifact, Path("results")))

Resources are the API's own JSON objects; `app.client.resources` has their types. Every failure is a `ClientError`,
whose message is a sentence for people: the tree is in `app.client.errors`. Only reads are repeated when a connection
breaks or the server is busy: a repeated submission would be a second job.
"""

from app.client.client import Client
from app.client.errors import (
    BadAddress,
    ClientError,
    DigestMismatch,
    DownloadFailed,
    NotSecateur,
    Problem,
    Unreachable,
)
from app.client.resources import Artifact, Dataset, Event, Job, System, Validation

__all__ = [
    "Artifact",
    "BadAddress",
    "Client",
    "ClientError",
    "Dataset",
    "DigestMismatch",
    "DownloadFailed",
    "Event",
    "Job",
    "NotSecateur",
    "Problem",
    "System",
    "Unreachable",
    "Validation",
]
