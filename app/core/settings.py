"""The service's settings: environment variables that start with `SECATEUR_`; an unknown one is refused, not ignored."""

from __future__ import annotations

import difflib
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.limits import UNLIMITED, Limit, Limits

PREFIX = "SECATEUR_"
CLIENT_VARIABLES = frozenset({"SECATEUR_URL", "SECATEUR_API_KEY"})
"""What the command line reads to talk to a server; allowed beside the server's own settings."""

_LOOPBACK = {"localhost", "127.0.0.1", "::1", "", None}


class UnknownSetting(ValueError):
    """An environment variable with our prefix that no setting answers to: most likely a misspelling."""


class Settings(BaseSettings):
    """Everything that an API process or a worker can be told. Units are in the names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    database_url: SecretStr = Field(description="postgresql://user:password@host:port/name")
    redis_url: SecretStr = Field(description="redis://:password@host:port/0, rediss://…, or redis+socket://…")
    artifact_dir: Path = Path("artifacts")
    data_dir: Path | None = Field(None, description="Folder with the data sets, in torchvision's layout.")
    dataset_download: bool = Field(False, description="Whether a worker may fetch a missing data set.")
    auth_required: bool = Field(True, description="Off only behind a gateway that authenticates by itself.")
    webhook_allow_private: bool = Field(False, description="Let webhooks go to private addresses, and over http://.")
    allow_insecure_redis: bool = Field(False, description="Allow redis:// without TLS to another host.")

    heartbeat_seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    lease_seconds: Annotated[float, Field(gt=1, le=3600)] = 60.0
    sweep_seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    checkpoint_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    cancel_grace_seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    watchdog_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    retention_days: Annotated[int, Field(ge=1, le=3650)] = 30
    max_body_bytes: Annotated[int, Field(ge=1024)] = 262_144
    body_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0
    max_checkpoint_bytes: Annotated[int, Field(ge=1024)] = 536_870_912
    """Of an uploaded one. The widest network's state dict has 430 million."""
    max_dataset_bytes: Annotated[int, Field(ge=1024)] = 1_073_741_824
    """Of an upload, all its files together."""
    upload_seconds: Annotated[float, Field(gt=0, le=43_200)] = 3_600.0
    max_queued_jobs: Limit = 1_000
    max_running_jobs: Limit = UNLIMITED
    max_stored_bytes: Limit = UNLIMITED
    requests_per_minute: Limit = 6_000
    """These four are of a tenant that has none of its own; `none` is no limit."""
    worker_device: Literal["auto", "cuda"] = "auto"
    """`cuda`: a worker that finds no GPU takes no jobs, rather than work without."""
    worker_threads: Annotated[int | None, Field(ge=1)] = None
    """Torch threads of one worker; None takes all cores: with several workers on a machine, share them out."""
    worker_together: Annotated[int, Field(ge=1, le=256)] = 16
    """The most members of a sweep that a worker trains at once; 1 is none together."""
    worker_together_on: Literal["gpu", "any"] = "gpu"
    """Where: `any` is also on the CPU, which is worth it for very small networks alone."""
    latency_seconds: Annotated[float, Field(ge=0, le=60)] = 2.0
    """For how long at most a network's latency is measured, at each batch size."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, data: object) -> object:
        known = {PREFIX + name.upper() for name in cls.model_fields} | CLIENT_VARIABLES
        for name in sorted(os.environ):
            if name.startswith(PREFIX) and name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise UnknownSetting(f"unknown setting {name}" + (f": did you mean {close[0]}?" if close else ""))
        return data

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, url: SecretStr) -> SecretStr:
        scheme, _, rest = url.get_secret_value().partition("://")
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not rest:
            raise ValueError("it must start with postgresql://, since only PostgreSQL will do")
        return url

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: SecretStr) -> SecretStr:
        if urlsplit(url.get_secret_value()).scheme not in ("redis", "rediss", "redis+socket"):
            raise ValueError("it must be redis://…, rediss://… for TLS, or redis+socket://… for a unix socket")
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            raise ValueError("lease_seconds must be at least three heartbeats, or one late beat loses the lease")
        url = urlsplit(self.redis_url.get_secret_value())
        if url.scheme == "redis" and url.hostname not in _LOOPBACK and not self.allow_insecure_redis:
            raise ValueError(
                f"refusing unencrypted redis:// to {url.hostname}: use rediss://, or set "
                "SECATEUR_ALLOW_INSECURE_REDIS=true on a private network"
            )
        return self

    @cached_property
    def limits(self) -> Limits:
        """Of a tenant that has none of its own."""
        return Limits(self.max_queued_jobs, self.max_running_jobs, self.max_stored_bytes, self.requests_per_minute)

    @cached_property
    def sqlalchemy_url(self) -> str:
        """`database_url` with the driver that we use."""
        return "postgresql+psycopg://" + self._database

    @cached_property
    def libpq_url(self) -> str:
        """`database_url` for the driver itself."""
        return "postgresql://" + self._database

    @property
    def _database(self) -> str:
        return self.database_url.get_secret_value().partition("://")[2]
