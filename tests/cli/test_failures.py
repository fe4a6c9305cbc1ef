"""What a user can do something about is a sentence and an exit code, never a traceback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from app.local import Stack
from tests.cli.conftest import Secateur
from tests.command import Done

COMMANDS = (
    "up",
    "demo",
    "api",
    "worker",
    "migrate",
    "keys",
    "tenants",
    "submit",
    "status",
    "list",
    "wait",
    "cancel",
    "webhooks",
    "quotas",
)
HEAVY = ("torch", "worker", "sqlalchemy", "celery", "fastapi", "uvicorn", "httpx", "app.local", "app.db")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _refused(done: Done, code: int) -> str:
    assert (done.code, done.out) == (code, "")
    assert "Traceback" not in done.err
    return " ".join(done.err.split())


def test_a_server_that_does_not_run(nowhere: Secateur, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    said = _refused(nowhere.told(SECATEUR_URL=url)("list"), 4)
    assert f"No answer from {url}" in said
    assert "`secateur up` starts one" in said


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://[::1"])
def test_an_address_that_is_none(nowhere: Secateur, url: str) -> None:
    assert url in _refused(nowhere.told(SECATEUR_URL=url)("list"), 2)


@pytest.mark.parametrize("key", ["wrong", "sk_0000000000000000_" + "A" * 43])
def test_a_wrong_key_is_refused_and_not_repeated(idle: Secateur, key: str) -> None:
    said = _refused(idle.told(SECATEUR_API_KEY=key)("list"), 3)
    assert "The key comes from SECATEUR_API_KEY, or from the file api-key in --state-dir." in said
    assert key == "wrong" or key not in said


def test_a_key_that_no_header_could_carry(idle: Secateur) -> None:
    assert "The API key" in _refused(idle.told(SECATEUR_API_KEY="schlüssel")("list"), 2)


def test_the_key_is_found_in_the_state_folder(nowhere: Secateur, idle_service: Stack) -> None:
    secateur = nowhere.told(SECATEUR_URL=idle_service.url)
    assert secateur("list", "--json", "--state-dir", idle_service.state_dir).code == 0
    _refused(secateur("list", "--json"), 3)


@pytest.mark.parametrize("command", ["api", "worker", "migrate"])
def test_a_missing_setting(nowhere: Secateur, command: str) -> None:
    said = _refused(nowhere(command), 2)
    assert said == "SECATEUR_DATABASE_URL is not set. SECATEUR_REDIS_URL is not set."


def test_a_wrong_setting_is_named_without_its_value(nowhere: Secateur) -> None:
    wrong = nowhere.told(SECATEUR_DATABASE_URL="mysql://u:geheim@h/d", SECATEUR_REDIS_URL="redis://localhost")
    said = _refused(wrong("migrate"), 2)
    assert said.startswith("SECATEUR_DATABASE_URL: ")
    assert "geheim" not in said


@pytest.mark.parametrize("url", [":geheim@h:6379/0", "amqp://u:geheim@h//"])
def test_a_broker_that_is_no_redis(nowhere: Secateur, closed_port: int, url: str) -> None:
    away = f"postgresql://127.0.0.1:{closed_port}/d"
    said = _refused(nowhere.told(SECATEUR_DATABASE_URL=away, SECATEUR_REDIS_URL=url)("migrate"), 2)
    assert said.startswith("SECATEUR_REDIS_URL: it must be redis://")
    assert "geheim" not in said


def test_a_limit_that_is_no_number(nowhere: Secateur) -> None:
    said = _refused(nowhere.told(SECATEUR_MAX_QUEUED_JOBS="unlimited")("migrate"), 2)
    assert "SECATEUR_MAX_QUEUED_JOBS: it is a whole number, or `none` for no limit." in said


def test_a_misspelt_setting(nowhere: Secateur) -> None:
    assert "SECATEUR_REDIS_ULR" in _refused(nowhere.told(SECATEUR_REDIS_ULR="redis://h")("api"), 2)


def test_a_database_that_is_away(nowhere: Secateur, closed_port: int) -> None:
    url = f"postgresql://user:geheim@127.0.0.1:{closed_port}/d"
    said = _refused(nowhere.told(SECATEUR_DATABASE_URL=url)("keys", "list"), 4)
    assert said.startswith("The database cannot be reached: ")
    assert "geheim" not in said


@pytest.mark.parametrize("command", ["keys", "tenants"])
def test_a_database_without_the_schema(nowhere: Secateur, postgres: str, command: str) -> None:
    said = _refused(nowhere.told(SECATEUR_DATABASE_URL=postgres)(command, "list"), 4)
    assert said == "The database has not this version's schema: run `secateur migrate`."


def test_a_port_that_is_taken_is_no_refusal_of_a_server(nowhere: Secateur, idle_service: Stack) -> None:
    apart = nowhere.told(SECATEUR_DATABASE_URL=idle_service.database_url, SECATEUR_REDIS_URL=idle_service.redis_url)
    assert "address already in use" in _refused(apart("api", "--port", idle_service.url.rpartition(":")[2]), 1)


def test_a_port_beyond_all_ports_is_wrong_usage(nowhere: Secateur) -> None:
    assert "--port" in _refused(nowhere("up", "--port", "70000"), 2)


def test_help_names_every_command_and_loads_nothing_heavy(nowhere: Secateur) -> None:
    done = nowhere("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert f" {command} " in done.out
    for code in range(5):
        assert f" {code} " in done.out.partition("Exit codes:")[2]
    loaded = "import json, sys; import app.cli; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True).stdout)
    assert [name for name in HEAVY if name in modules] == []
