from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from app.local import Stack, stack
from tests import speaking
from tests.faults.cluster import FIVE_EPOCHS, SETTINGS, Cluster, undisturbed_model

WORKERS = 2


def client_of(running: Stack) -> httpx.Client:
    return speaking.client_of(running.url, running.api_key)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    state = tmp_path_factory.mktemp("faults") / "state of it"
    with (
        stack(state_dir=state, workers=WORKERS, durable=False, env=SETTINGS, notify=lambda _: None) as running,
        client_of(running) as http,
    ):
        cluster = Cluster(running, http)
        yield cluster
        cluster.queue.close()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """A service with two workers, all of it well and idle, however the test before has left it."""
    shared_cluster.wait_until_ready(workers=WORKERS)
    yield shared_cluster
    shared_cluster.wait_until_ready(workers=WORKERS)
    for job in shared_cluster.all_jobs():
        if not job["done"]:
            shared_cluster.cancel(job["id"])


@pytest.fixture(scope="session")
def undisturbed() -> str:
    """sha256 of the model of FIVE_EPOCHS when nothing happens."""
    return undisturbed_model(FIVE_EPOCHS)
