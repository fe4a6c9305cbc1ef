"""What a service of this kind is at least: FastAPI and SQLAlchemy, one row read or inserted, no key and no model.

`python -m benchmarks.bench.plain PORT DATABASE_URL` serves that.
"""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import uvicorn
from fastapi import Body, FastAPI
from sqlalchemy import JSON, DateTime, create_engine, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker


class Base(DeclarativeBase):
    pass


class PlainJob(Base):
    __tablename__ = "plain_jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    def told(self) -> dict[str, Any]:
        return {"id": self.id, "spec": self.spec, "created_at": self.created_at}


def make(database_url: str) -> FastAPI:
    engine = create_engine(database_url, pool_size=20)
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine, expire_on_commit=False)
    app = FastAPI()

    @app.post("/jobs", status_code=202)
    def submit(spec: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008 - as FastAPI has it
        with sessions.begin() as session:
            row = PlainJob(spec=spec)
            session.add(row)
            session.flush()
            return row.told()

    @app.get("/jobs/{job_id}")
    def read(job_id: int) -> dict[str, Any]:
        with sessions() as session:
            return session.get_one(PlainJob, job_id).told()

    return app


def main() -> None:
    port, database_url = sys.argv[1:]
    uvicorn.run(make(database_url), host="127.0.0.1", port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
