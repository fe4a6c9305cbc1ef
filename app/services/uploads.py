"""Files that arrive: piece by piece into the store, none of them held."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from app.core.errors import StorageFull, StoreFull
from app.core.ids import new_job_id
from app.services.quotas import Room
from app.storage import ArtifactStore


class Arrivals:
    """Bytes of uploads that are on their way in this process. The database counts what has arrived; of what has not, no
    tenant should have more than it has room for, or it could fill the disk for all with what is refused at its end."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()

    async def within(self, room: Room, tenant: str, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """The pieces, until with others of the tenant they are more than there was room for. Raises StorageFull, and
        what `pieces` raises."""
        own = 0
        try:
            async for piece in pieces:
                own += len(piece)
                self._bytes[tenant] += len(piece)
                if room.stored + self._bytes[tenant] > room.limit:
                    raise StorageFull(room.limit, room.stored, self._bytes[tenant])
                yield piece
        finally:
            self._bytes[tenant] -= own
            if not self._bytes[tenant]:
                del self._bytes[tenant]


class Draft:
    """What has arrived so far of the upload of the job of this id."""

    def __init__(self, job_id: str, path: Path) -> None:
        self.job_id, self.path, self.size = job_id, path, 0
        self._file, self._digest = path.open("wb"), hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    async def write(self, chunk: bytes | memoryview) -> None:
        await asyncio.to_thread(self._write, chunk)

    def _write(self, chunk: bytes | memoryview) -> None:
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    async def close(self) -> None:
        await asyncio.to_thread(self._file.close)


@asynccontextmanager
async def arriving(store: ArtifactStore) -> AsyncIterator[Draft]:
    """Take a file in; when the block ends it is in place for its job. Whatever ends the block ahead of time leaves
    nothing behind. Raises StoreFull. All that touches the disk happens on threads."""
    job_id = new_job_id()
    try:
        with _room_wanted():
            draft = await asyncio.to_thread(lambda: Draft(job_id, store.incoming(job_id)))
            try:
                yield draft
            finally:
                await draft.close()
            await asyncio.to_thread(store.accept, job_id)
    except BaseException:
        await asyncio.to_thread(store.drop_upload, job_id)
        raise


@contextmanager
def _room_wanted() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull from error
        raise
