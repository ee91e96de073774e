import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from oasisgen import lock, storage
from oasisgen.config.folder import write_settings
from oasisgen.errors import InvalidFile, UserError

DEAD = lock.Holder("of-a-dead-job", 7, "gone", 1, "last")


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "READ_SECONDS", 0.15)


def holder_of(folder: str) -> lock.Holder:
    return lock.Holder(**json.loads(storage.read_bytes(storage.join(folder, "lock.json"))))


def test_a_name_stands_for_one_configuration(place: str) -> None:
    write_settings(place, {"a": {"b": 1}, "out": "x"})
    write_settings(place, {"a": {"b": 1}, "out": "y"})
    with pytest.raises(UserError, match=r"exists with other settings \(a\.b 1 -> 2\): use another --out"):
        write_settings(place, {"a": {"b": 2}, "out": "x"})
    assert json.loads(storage.read_bytes(storage.join(place, "config.json"))) == {"a": {"b": 1}, "out": "x"}


def test_a_file_is_replaced_only_if_it_is_what_was_read(place: str) -> None:
    uri = storage.join(place, "lock.json")
    assert storage.replace(uri, b"first", "of-a-file-that-is-not-there") is None
    first = storage.replace(uri, b"first", None)
    assert first
    assert storage.read_tagged(uri) == (b"first", first)
    assert storage.replace(uri, b"other", None) is None
    second = storage.replace(uri, b"second", first)
    assert second
    assert storage.replace(uri, b"other", first) is None
    assert storage.read_tagged(uri) == (b"second", second)


def test_one_job_at_a_time_holds_a_folder(place: str) -> None:
    with lock.lock(place):
        with pytest.raises(UserError, match=r"is being worked on by .+, process \d+: wait for it or use another --out"):
            lock.require_unlocked(place)
        with pytest.raises(UserError, match="is being worked on by"), lock.lock(place):
            pass
    lock.require_unlocked(place)
    with lock.lock(place) as held:
        assert held.holder.generation == 2
    assert holder_of(place).released


def test_no_room_because_of_the_same_job_is_said_so(place: str) -> None:
    for held, reason in ((lock.lock(place), "is being worked on by"), (nullcontext(), "the cluster is full")):
        with held, pytest.raises(UserError, match=reason), lock.unless_locked(place):
            raise UserError("the cluster is full")


def test_of_many_who_find_a_dead_holder_one_takes_over(place: str) -> None:
    storage.write_bytes(storage.join(place, "lock.json"), DEAD.to_json())
    generations: list[int] = []
    refused: list[str] = []
    done = threading.Barrier(4)

    def attempt() -> None:
        try:
            with lock.lock(place) as held:
                generations.append(held.holder.generation)
                done.wait(60)
        except UserError as error:
            refused.append(str(error))
            done.wait(60)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (generations, len(refused)) == ([8], 3)


def test_who_lost_the_folder_is_interrupted_and_can_neither_renew_nor_commit_nor_release(
    place: str, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as in a job
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    uri = storage.join(place, "lock.json")
    with pytest.raises(lock.LockLost, match="another job took it over"), lock.lock(place) as held:  # noqa: PT012
        held.proof.require()
        storage.write_bytes(uri, DEAD.to_json())  # what a job that takes over does
        time.sleep(30)  # interrupted long before
    for attempt in (held.renew, held.proof.require, lambda: held.commit(storage.join(place, "manifest.json"), b"{}")):
        with pytest.raises(lock.LockLost, match="another job took it over"):
            attempt()
    held.release()
    assert storage.read_bytes(uri) == DEAD.to_json()
    assert not storage.exists(storage.join(place, "manifest.json"))


def test_a_file_that_says_complete_is_written_once(place: str) -> None:
    uri = storage.join(place, "manifest.json")
    with lock.lock(place) as held:
        held.commit(uri, b"{}")
        held.commit(uri, b"{}")  # the answer to the first one was lost
        with pytest.raises(lock.LockLost, match=r"manifest\.json was written by another job"):
            held.commit(uri, b"{ }")
    assert storage.read_bytes(uri) == b"{}"


def test_a_job_that_was_stopped_finds_its_folder_taken_when_it_wakes(place: str) -> None:
    script = f"""
import sys
from oasisgen import lock
from oasisgen.errors import UserError
held = lock.acquire({place!r})
print("held", flush=True)
for line in sys.stdin:
    try:
        held.commit({storage.join(place, "manifest.json")!r}, b"of the first job")
    except UserError as error:
        print(type(error).__name__, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    ) as first:
        assert first.stdin
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        first.send_signal(signal.SIGSTOP)
        first.stdin.write("commit\n")
        first.stdin.flush()
        with lock.lock(place) as held:
            first.send_signal(signal.SIGCONT)
            assert first.stdout.readline() == "LockLost\n"
            held.commit(storage.join(place, "manifest.json"), b"of the second job")
        first.stdin.close()
    assert storage.read_bytes(storage.join(place, "manifest.json")) == b"of the second job"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"token": 1}', DEAD.to_json().replace(b"7", b'"x"')])
def test_a_damaged_lock_is_one_line(content: bytes, tmp_path: object) -> None:
    storage.write_bytes(f"{tmp_path}/lock.json", content)
    with pytest.raises(InvalidFile, match=r"lock\.json is damaged: remove it if no job works on"):
        lock.acquire(str(tmp_path))
