"""PostgreSQL and the broker, each alone."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.local import StateDirInUse, start_broker, start_postgres
from app.local.errors import NotAStateDir

LONG = "a folder, with a comma and a name so long that no socket's path could hold it, because 107 bytes are the most"

SECRETS = ("password", "operator-password", "valkey.conf")


@pytest.mark.parametrize("name", ["state", LONG])
def test_postgres_finds_its_data_again_and_takes_its_socket_away(name: str) -> None:
    with TemporaryDirectory() as short:
        _held_to_its_socket(Path(short) / name, is_far=name == LONG)


def _held_to_its_socket(folder: Path, *, is_far: bool) -> None:
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
    assert (far is not None) == is_far
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
        client.lpush("secateur.test", "message")
        url = server.url
    with start_broker(folder) as server, redis.Redis.from_url(server.url) as client:
        assert server.url == url
        assert client.lrange("secateur.test", 0, -1) == [b"message"]


def test_the_broker_wants_its_password(broker_url: str) -> None:
    with redis.Redis.from_url(broker_url) as client:
        port = client.connection_pool.connection_kwargs["port"]
    once = Retry(NoBackoff(), 0)
    for user, password in ((None, None), (None, "wrong"), ("secateur", "wrong"), ("operator", "wrong")):
        with (
            redis.Redis(port=port, username=user, password=password, retry=once) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "CONFIG GET dir", "KEYS *", "EVAL return(1) 0", "SHUTDOWN", "MONITOR", "GET stranger"],
)
def test_the_service_may_do_with_the_broker_what_it_needs_and_no_more(broker_url: str, command: str) -> None:
    with redis.Redis.from_url(broker_url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split(" "))


def test_the_operator_may_do_all_with_the_broker(tmp_path: Path) -> None:
    with start_broker(tmp_path / "state") as server, redis.Redis.from_url(server.url) as client:
        client.set("secateur.test", "1")
        port = client.connection_pool.connection_kwargs["port"]
        password = (server.child.folder / "operator-password").read_text()
        with redis.Redis(port=port, username="operator", password=password) as operator:
            assert operator.flushall()
        assert client.get("secateur.test") is None


def test_secrets_are_for_their_owner_alone(tmp_path: Path) -> None:
    with start_broker(tmp_path / "state") as server:
        folder = server.child.folder
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [(folder / name).stat().st_mode & 0o777 for name in SECRETS] == [0o600] * 3


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
