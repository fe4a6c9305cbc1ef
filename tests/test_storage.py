from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from app.storage import LocalStore, is_intact, sha256_of

JOB = "job_" + "0" * 32


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "artifacts")


def _entries(store: LocalStore) -> list[str]:
    return sorted(path.name for path in store.folder(JOB, 1).parent.glob("*"))


def test_what_is_staged_appears_whole_and_at_once(store: LocalStore) -> None:
    staged = store.stage(JOB, 1)
    (staged / "report.json").write_text("{}")
    assert not store.folder(JOB, 1).exists()

    store.publish(JOB, 1)

    assert not staged.exists()
    assert [path.name for path in store.folder(JOB, 1).iterdir()] == ["report.json"]


def test_what_an_attempt_left_is_not_in_the_way_of_its_repetition(store: LocalStore) -> None:
    (store.stage(JOB, 1) / "half").write_text("x")
    assert list(store.stage(JOB, 1).iterdir()) == []


def test_attempts_have_folders_of_their_own(store: LocalStore) -> None:
    (store.stage(JOB, 1) / "a").write_text("1")
    (store.stage(JOB, 2) / "a").write_text("2")
    store.publish(JOB, 2)
    store.discard(JOB, 1)
    assert (store.folder(JOB, 2) / "a").read_text() == "2"
    assert _entries(store) == [".checkpoints", "2"]


def test_a_published_attempt_is_never_written_over(store: LocalStore) -> None:
    for text in ("first", "second"):
        (store.stage(JOB, 1) / "a").write_text(text)
        if text == "first":
            store.publish(JOB, 1)
    with pytest.raises(OSError, match="not empty"):
        store.publish(JOB, 1)
    assert (store.folder(JOB, 1) / "a").read_text() == "first"


@pytest.mark.parametrize("published", [False, True])
def test_a_discarded_attempt_leaves_nothing_and_may_be_discarded_again(store: LocalStore, published: bool) -> None:
    (store.stage(JOB, 1) / "a").write_text("x")
    if published:
        store.publish(JOB, 1)
    store.discard(JOB, 1)
    store.discard(JOB, 1)
    assert _entries(store) == [".checkpoints"]


@pytest.mark.parametrize(
    ("published", "checkpoints", "left"),
    [(1, (), ["1"]), (2, (), ["2"]), (None, ("3-2.pt",), [".checkpoints"]), (None, (), [])],
)
def test_of_an_ended_job_only_what_counts_is_kept(
    store: LocalStore, published: int | None, checkpoints: Collection[str], left: list[str]
) -> None:
    for attempt in (1, 2):
        (store.stage(JOB, attempt) / "a").write_text("x")
        store.publish(JOB, attempt)
    (store.stage(JOB, 3) / "half").write_text("x")
    for name in ("3-1.pt", "3-2.pt", ".3-3.pt.partial"):
        (store.checkpoints(JOB) / name).write_text("x")

    for _ in range(2):
        store.tidy(JOB, published, checkpoints, 3)

        assert _entries(store) == left
        assert [path.name for path in store.checkpoints(JOB).glob("*")] == list(checkpoints)
        assert store.folder(JOB, 1).parent.exists() == bool(left)


def test_what_a_later_attempt_has_written_is_not_touched(store: LocalStore) -> None:
    """Who tidies up after the first may have been frozen while the job was retried."""
    store.stage(JOB, 1)
    for attempt in (2, 3):
        (store.stage(JOB, attempt) / "a").write_text("x")
    store.publish(JOB, 2)
    for name in ("1-1.pt", ".1-2.pt.partial", "3-1.pt", ".3-2.pt.partial"):
        (store.checkpoints(JOB) / name).write_text("x")

    store.tidy(JOB, None, (), 1)

    assert _entries(store) == [".3.partial", ".checkpoints", "2"]
    assert {path.name for path in store.checkpoints(JOB).iterdir()} == {"3-1.pt", ".3-2.pt.partial"}
    store.stage(JOB, 4)
    store.discard(JOB, 3)
    store.tidy(JOB, 2, (), 3)
    assert (_entries(store), list(store.checkpoints(JOB).iterdir())) == ([".4.partial", ".checkpoints", "2"], [])


def test_a_removed_job_leaves_nothing_but_its_upload(store: LocalStore) -> None:
    store.incoming(JOB).write_bytes(b"abc")
    (store.stage(JOB, 1) / "a").write_text("x")
    store.publish(JOB, 1)
    (store.checkpoints(JOB) / "1-1.pt").write_text("x")
    for _ in range(2):
        store.remove(JOB)
        assert not store.folder(JOB, 1).parent.exists()
        assert store.incoming(JOB).exists()


def test_a_file_is_intact_while_it_holds_what_was_published(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    digest = sha256_of(path)
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert is_intact(path, size=3, sha256=digest)

    path.write_bytes(b"abd")
    os.utime(path, ns=(1, 1))  # the file system's clock may tick too slowly to tell two writes apart
    assert not is_intact(path, size=3, sha256=digest)
    path.write_bytes(b"abc")
    os.utime(path, ns=(2, 2))
    assert is_intact(path, size=3, sha256=digest)
    os.truncate(path, 2)
    assert not is_intact(path, size=3, sha256=digest)
    path.unlink()
    assert not is_intact(path, size=3, sha256=digest)


def _age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_an_upload_is_in_place_when_all_of_it_is_there(store: LocalStore) -> None:
    assert store.uploads() == {}
    store.incoming(JOB).write_bytes(b"abc")
    assert not store.upload(JOB).exists()
    assert store.uploads().keys() == {JOB}

    store.accept(JOB)

    assert store.upload(JOB).read_bytes() == b"abc"
    assert not store.incoming(JOB).exists()
    _age(store.upload(JOB), 3_600)
    assert store.uploads()[JOB] == pytest.approx(3_600, abs=60)


def test_a_dropped_upload_is_gone_arrived_or_not_and_may_be_dropped_again(store: LocalStore) -> None:
    store.incoming(JOB).write_bytes(b"abc")
    store.accept(JOB)
    store.incoming(JOB).write_bytes(b"abc")

    for _ in range(2):
        store.drop_upload(JOB)
        assert store.uploads() == {}


def test_tidying_a_job_leaves_its_upload_alone(store: LocalStore) -> None:
    store.incoming(JOB).write_bytes(b"abc")
    store.accept(JOB)
    store.stage(JOB, 1)

    store.tidy(JOB, None, (), 1)

    assert store.upload(JOB).exists()
    assert not store.folder(JOB, 1).parent.exists()
