"""Examples in the API's description. The tests hold them against the schemas and against what parses requests."""

from __future__ import annotations

from typing import Any

_TRAINED = "job_01a209a9d3ffd0dd31660e88333bc192"
_OTHER = "job_01a209aad36eaf74c730c0b590d70325"


def _named(summary: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "value": value}


SPECS = {
    "train": _named(
        "Train with an L1 penalty, then set what is near zero to zero",
        {
            "kind": "train",
            "display_name": "with L1",
            "labels": {"team": "vision"},
            "dataset": {"name": "digits"},
            "training": {"epochs": 15},
            "regularization": {"penalty": "l1", "strength": 0.001},
            "pruning": {"method": "threshold", "threshold": 0.01},
        },
    ),
    "prune": _named(
        "Prune the network of an earlier job to 1 % of its weights, and fine-tune what is left",
        {
            "kind": "prune",
            "source": {"job_id": _TRAINED, "artifact": "dense.safetensors"},
            "pruning": {"method": "magnitude", "sparsity": 0.99},
            "fine_tuning": {"epochs": 5},
        },
    ),
    "compare": _named(
        "Put two finished jobs side by side",
        {"kind": "compare", "jobs": [_TRAINED, _OTHER]},
    ),
    "sweep": _named(
        "Train at each of three strengths of a penalty, prune each at two thresholds, and see how small and how good",
        {
            "kind": "sweep",
            "display_name": "how far",
            "base": {
                "kind": "train",
                "dataset": {"name": "digits"},
                "training": {"epochs": 15},
                "regularization": {"penalty": "l1"},
                "pruning": {"method": "threshold"},
            },
            "grid": {"strengths": [0, 0.0003, 0.001], "thresholds": [0.01, 0.03]},
        },
    ),
}

PATCHES = {
    "rename": _named(
        "Another name; one label set, one removed", {"display_name": "best", "labels": {"team": None, "keep": "yes"}}
    ),
}

EVENT = {
    "seq": 4,
    "type": "epoch",
    "level": "info",
    "at": "2026-11-23T18:28:41.512030Z",
    "attempt": 1,
    "data": {"course": "training", "epoch": 1, "epochs": 15},
}

ARTIFACT = {
    "name": "model.safetensors",
    "role": "checkpoint",
    "media_type": "application/vnd.safetensors",
    "size": 1927312,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "created_at": "2026-11-23T18:28:51.070914Z",
    "expires_at": "2026-12-23T18:28:51.070914Z",
    "href": f"/v1/jobs/{_TRAINED}/artifacts/model.safetensors",
}

PROBLEM = {
    "type": "about:blank",
    "title": "The spec is invalid",
    "status": 422,
    "detail": "One field of the spec must be mended; `errors` says which.",
    "instance": "/v1/jobs",
    "code": "invalid_spec",
    "request_id": "req_38b0385f22d0d39df101c456",
    "retryable": False,
    "errors": [
        {
            "pointer": "/training/epocs",
            "code": "unknown_field",
            "detail": "unknown field 'epocs': did you mean 'epochs'?",
        }
    ],
}

OF_SCHEMAS = {"Event": EVENT, "Artifact": ARTIFACT, "Problem": PROBLEM}
