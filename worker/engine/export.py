"""Writes the files of a finished run; the manifest comes last and vouches for the others."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel

from app.contract.artifacts import ARTIFACTS
from app.contract.report import Manifest, ManifestFile, Receipt

_PACKAGES = (
    *("torch", "torchvision", "numpy", "safetensors", "onnx", "onnxruntime", "scikit-learn", "matplotlib"),
    "secateur",
)


def publish(out: Path, files: Mapping[str, bytes], receipt: Receipt, written: Sequence[str] = ()) -> None:
    """Write every file, then `manifest.json`, which also vouches for the files that are `written` already. A folder
    without a manifest is an unfinished one."""
    for name, content in files.items():
        (out / name).write_bytes(content)
    manifest = Manifest(files=tuple(_describe(out / name) for name in (*files, *written)), receipt=receipt)
    (out / "manifest.json").write_bytes(to_json(manifest, indent=2))


def _describe(path: Path) -> ManifestFile:
    kind = ARTIFACTS[path.name]
    return ManifestFile(
        name=path.name,
        role=kind.role,
        media_type=kind.media_type,
        size=path.stat().st_size,
        sha256=file_sha256(path),
    )


def to_json(document: BaseModel, indent: int | None = None) -> bytes:
    return document.model_dump_json(indent=indent).encode() + b"\n"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of every installed package that had a hand in the result."""
    return dict(_versions())


@cache
def _versions() -> Mapping[str, str]:
    # Looked up once a process: a package's whole metadata are read for it.
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    # The wheel's metadata leave out which CUDA it was built for; that changes results.
    return found | {"torch": torch.__version__}
