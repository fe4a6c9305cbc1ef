"""PostgreSQL and the broker, each alone."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.local import StateDirInUse, start_broker, start_postgres
from app.local.errors import NotAStateDir

LONG = "a folder, with a comma and a name so long that no socket's path could hold it, because 107 bytes are the most"


@pytest.mark.parametrize("name", ["state", LONG])
def test_postgres_finds_its_data_again_and_takes_its_socket_away(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    with start_postgres(folder, durable=False) as server, psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept (value int)")
        connection.execute("INSERT INTO kept VALUES (7)")
    assert not _sockets(folder)
    with start_postgres(folder, durable=False) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (7,)
        assert _sockets(folder)
        note = folder / "socket-folder"
        far = Path(note.read_text()) if note.exists() else None
    assert not _sockets(folder)
    assert (far is not None) == (name == LONG)
    assert far is None or not far.exists()


def _sockets(folder: Path) -> list[Path]:
    note = folder / "socket-folder"
    return [*(folder / "socket").glob(".s.*"), *(Path(note.read_text()).glob(".s.*") if note.exists() else [])]


def test_postgres_listens_on_no_port(tmp_path: Path) -> None:
    with start_postgres(tmp_path / "state", durable=False) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


def test_the_broker_keeps_its_data_and_its_url(tmp_path: Path) -> None:
    folder = tmp_path / "state of it"
    with start_broker(folder) as server, redis.Redis.from_url(server.url) as client:
        client.lpush("queue", "message")
        url = server.url
    with start_broker(folder) as server, redis.Redis.from_url(server.url) as client:
        assert server.url == url
        assert client.lrange("queue", 0, -1) == [b"message"]


def test_the_broker_wants_its_password(broker_url: str) -> None:
    with redis.Redis.from_url(broker_url) as client:
        port = client.connection_pool.connection_kwargs["port"]
    once = Retry(NoBackoff(), 0)
    for password in (None, "wrong"):
        with (
            redis.Redis(port=port, password=password, retry=once) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    with start_broker(tmp_path / "state") as server:
        folder = server.child.folder
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [(folder / name).stat().st_mode & 0o777 for name in ("password", "valkey.conf")] == [0o600, 0o600]


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    with (
        start_broker(tmp_path / "state"),
        pytest.raises(StateDirInUse, match="is in use by process"),
        start_broker(tmp_path / "state"),
    ):
        pass


def test_a_folder_of_somebody_else_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    tmp_path.chmod(0o755)
    with pytest.raises(NotAStateDir, match="holds something else"), start_postgres(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]
    assert tmp_path.stat().st_mode & 0o777 == 0o755
