import json
import signal
import threading
import time
from contextlib import nullcontext

import pytest

from oasisgen import claim, storage
from oasisgen.errors import UserError


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(claim, "SILENT_SECONDS", 3)


def test_a_name_stands_for_one_configuration(place: str) -> None:
    claim.claim(place, {"a": {"b": 1}, "out": "x"})
    claim.claim(place, {"a": {"b": 1}, "out": "y"})
    with pytest.raises(UserError, match=r"exists with other settings \(a\.b 1 -> 2\): use another --out"):
        claim.claim(place, {"a": {"b": 2}, "out": "x"})
    assert json.loads(storage.read_bytes(storage.join(place, "config.json"))) == {"a": {"b": 1}, "out": "x"}


def test_one_job_at_a_time_holds_a_folder(place: str) -> None:
    with claim.hold(place):
        with pytest.raises(UserError, match=r"is being worked on by .+, process \d+: wait for it or use another --out"):
            claim.require_free(place)
        with pytest.raises(UserError, match="is being worked on by"), claim.hold(place):
            pass
    claim.require_free(place)
    with claim.hold(place):
        pass
    assert not storage.exists(storage.join(place, "holders/000001.json"))


def test_no_room_because_of_the_same_job_is_said_so(place: str) -> None:
    for held, reason in ((claim.hold(place), "is being worked on by"), (nullcontext(), "the cluster is full")):
        with held, pytest.raises(UserError, match=reason), claim.held_first(place):
            raise UserError("the cluster is full")


def test_of_many_who_find_a_dead_holder_one_takes_over(place: str) -> None:
    storage.write_text(storage.join(place, "holders/000007.json"), json.dumps({"host": "gone", "pid": 1}))
    held: list[float] = []
    refused: list[str] = []

    def attempt() -> None:
        try:
            with claim.hold(place):
                held.append(time.monotonic())
                time.sleep(5)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)
    assert [name for name, _ in storage.list_files(place)] == []


def test_who_was_silent_and_lost_the_folder_stops(place: str, request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as in a job
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    with pytest.raises(UserError, match="another job took it over"), claim.hold(place):  # noqa: PT012
        storage.remove(storage.join(place, "holders/000001.json"))  # what a job that takes over does
        time.sleep(30)  # interrupted long before
