"""Every name in the Dockerfile and in docker-compose.yml means something that exists."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.core.settings import PREFIX, Settings
from app.local import Stack
from tests.packaging.conftest import Instruction
from tests.waiting import wait_until

OURS = ("migrate", "api", "worker", "worker-gpu")


def _commands(dockerfile: list[Instruction], compose: dict[str, Any]) -> set[tuple[str, ...]]:
    in_images = [tuple(json.loads(i.rest)) for i in dockerfile if i.word == "CMD" and i.stage != "test"]
    return {*in_images, *(tuple(compose["services"][name]["command"]) for name in OURS)}


def _pip_installs(dockerfile: list[Instruction]) -> dict[str, list[str]]:
    """The arguments of each stage's `pip install`."""
    runs = {i.stage: i.rest.removeprefix("pip install ") for i in dockerfile if i.rest.startswith("pip install ")}
    return {stage: shlex.split(arguments) for stage, arguments in runs.items()}


def test_the_stages_are_in_order_and_named(dockerfile: list[Instruction]) -> None:
    stages = [instruction.rest.split(" AS ") for instruction in dockerfile if instruction.word == "FROM"]
    assert [name for _, name in stages] == ["base", "api", "worker", "test"]
    assert [parent for parent, _ in stages[1:]] == ["base", "base", "worker"]


def test_every_file_that_is_copied_exists_and_reaches_the_build(root: Path, dockerfile: list[Instruction]) -> None:
    sources = [source for i in dockerfile if i.word == "COPY" for source in i.rest.split()[:-1]]
    assert len(sources) > 10
    assert [source for source in sources if not (root / source).exists()] == []
    assert [source for source in sources if _is_ignored(root, source)] == []
    assert _is_ignored(root, ".env")
    assert _is_ignored(root, ".venv")
    assert _is_ignored(root, "app/core/__pycache__")


def _is_ignored(root: Path, path: str) -> bool:
    ignored = False
    for line in (root / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").replace("**/", "*")
        if line and not line.startswith("#") and fnmatch.fnmatchcase(path, pattern):
            ignored = not line.startswith("!")
    return ignored


def test_what_is_installed_is_what_the_makefile_installs(
    root: Path, project: dict[str, Any], dockerfile: list[Instruction]
) -> None:
    installs = _pip_installs(dockerfile)
    assert all(arguments[:2] == ["-c", "constraints.txt"] for arguments in installs.values())
    assert installs["base"][2:] == ["./clients/python", ".[otel]"]
    asked = [re.fullmatch(r"\.\[(.+)\]", arguments[-1]) for arguments in installs.values()]
    extras = {extra for found in asked if found for extra in found[1].split(",")}
    assert extras == project["optional-dependencies"].keys()
    assert f"-c constraints.txt -e ./clients/python -e '{installs['test'][2]}'" in (root / "Makefile").read_text()


def test_nobody_runs_as_root_and_no_build_tool_is_installed(dockerfile: list[Instruction]) -> None:
    for stage in ("api", "worker", "test"):
        assert [i.rest for i in dockerfile if i.stage == stage and i.word == "USER"][-1] == "secateur"
    assert [i for i in dockerfile if re.search(r"\b(apt|apt-get|apk|gcc)\b", i.rest)] == []


def test_every_image_tells_its_health(dockerfile: list[Instruction]) -> None:
    assert [i.stage for i in dockerfile if i.word == "HEALTHCHECK"] == ["api", "worker", "test"]


def test_the_worker_s_health_is_its_sign_of_life(service: Stack, idle_service: Stack) -> None:
    wait_until(lambda: _health(service) == 0, timeout=60, what="the worker has signed in")
    assert _health(idle_service) == 1


def _health(running: Stack) -> int:
    command = [sys.executable, "-m", "worker.health"]
    return subprocess.run(command, env=running.environment, stderr=subprocess.PIPE, timeout=60, check=False).returncode


def test_every_command_is_one_of_the_command_line(dockerfile: list[Instruction], compose: dict[str, Any]) -> None:
    commands = _commands(dockerfile, compose) | {("secateur", "keys", "create")}
    assert {command[1] for command in commands} == {"api", "worker", "migrate", "keys"}
    for program, *arguments in commands:
        assert program == "secateur"
        done = subprocess.run([sys.executable, "-m", "app.cli", *arguments, "--help"], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_way_to_the_first_key_is_told(root: Path) -> None:
    for name in ("docker-compose.yml", "docs/operations.md"):
        assert "docker compose run --rm api secateur keys create" in (root / name).read_text()


def test_every_build_target_is_a_stage_and_its_command_the_stage_s(
    dockerfile: list[Instruction], compose: dict[str, Any]
) -> None:
    commands = {i.stage: json.loads(i.rest) for i in dockerfile if i.word == "CMD"}
    services = compose["services"]
    assert {name: services[name]["build"]["target"] for name in OURS} == {
        "migrate": "api",
        "api": "api",
        "worker": "worker",
        "worker-gpu": "worker",
    }
    assert all(services[name]["command"] == commands[name] for name in ("api", "worker"))


def test_every_service_waits_for_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in OURS:
        for needed, how in services[name]["depends_on"].items():
            healthy, done = "service_healthy", "service_completed_successfully"
            assert how["condition"] == (done if needed == "migrate" else healthy)
            assert needed == "migrate" or services[needed]["healthcheck"]["test"]
        assert (name == "migrate") or services[name]["depends_on"].keys() == {"db", "redis", "migrate"}


def test_every_volume_and_network_is_declared(compose: dict[str, Any]) -> None:
    services = compose["services"].values()
    volumes = {volume.split(":")[0] for service in services for volume in service.get("volumes", [])}
    networks = {network for service in services for network in service["networks"]}
    assert volumes == compose["volumes"].keys()
    assert networks - {"default"} == compose["networks"].keys()
    assert compose["networks"]["private"]["internal"] is True


def test_only_the_gpu_s_worker_asks_for_one(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {name for name, service in services.items() if "deploy" in service} == {"worker-gpu"}
    assert {name for name, service in services.items() if "profiles" in service} == {"worker-gpu"}
    device = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_redis_keeps_its_data_and_wants_a_password(compose: dict[str, Any]) -> None:
    words = compose["services"]["redis"]["command"]
    assert words[words.index("--appendonly") + 1] == "yes"
    assert words[words.index("--requirepass") + 1].startswith("${REDIS_PASSWORD:?")


def test_every_variable_is_in_the_example(root: Path, env_example: dict[str, str]) -> None:
    used = set(re.findall(r"\$\{(\w+)", (root / "docker-compose.yml").read_text()))
    assert used == env_example.keys()


def test_no_secret_has_a_default(root: Path, env_example: dict[str, str]) -> None:
    text = (root / "docker-compose.yml").read_text()
    passwords = re.findall(r"^ +\w+_(?:PASSWORD|AUTH): (.+)$", text, re.MULTILINE)
    passwords += re.findall(r"://\w*:(\S.*)@", text)
    assert len(passwords) == 4
    assert all(re.match(r"\$\{\w+:\?", password) for password in passwords)
    assert {name for name, value in env_example.items() if not value} == {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}


@pytest.mark.parametrize("name", OURS)
def test_the_settings_are_real_and_lawful(root: Path, compose: dict[str, Any], name: str) -> None:
    environment = compose["services"][name]["environment"]
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    assert environment.keys() <= known
    filled = {key: _filled(value) for key, value in environment.items()}
    code = "from app.core.settings import Settings; print(Settings().sqlalchemy_url)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | filled,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "postgresql+psycopg://secateur:secret@db:5432/secateur", done.stderr


def _filled(value: str) -> str:
    """As Compose puts the variables in: required ones have a value, the others their default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", re.sub(r"\$\{\w+:\?[^}]*\}", "secret", value))


def test_the_dockerfile_sets_no_unknown_setting(dockerfile: list[Instruction]) -> None:
    assert list(_settings(dockerfile)) == []


def _settings(dockerfile: list[Instruction]) -> Iterator[str]:
    for instruction in dockerfile:
        yield from re.findall(rf"\b{PREFIX}\w+", instruction.rest)
