"""The real lock over an S3 in memory, in thousands of schedules of what machines and networks do.

Jobs are paused, killed and cut off; requests are refused, arrive a minute late, collide, or lose their answer. Time is
virtual and one job runs at a time, so a schedule is a function of its seed.
"""

import hashlib
import heapq
import io
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import botocore.exceptions
import pytest

from oasisgen import lock, s3, storage
from oasisgen.errors import StorageError, UserError

FOLDER, PARTS = "s3://bucket/batch", 3
SCHEDULES = 1500


class Killed(BaseException):
    """SIGKILL."""


class World:
    """Virtual time. Jobs are threads, of which one runs until it sleeps."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], object]]] = []
        self.numbers = itertools.count()
        self.idle = threading.Semaphore(0)
        self.turns: dict[int, threading.Semaphore] = {}

    def at(self, when: float, action: Callable[[], object]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), action))

    def sleep(self, seconds: float) -> None:
        """Let `seconds` pass for the calling job."""
        turn = self.turns[threading.get_ident()]

        def wake() -> None:
            turn.release()
            self.idle.acquire()

        self.at(self.now + seconds, wake)
        self.idle.release()
        turn.acquire()

    def stop(self) -> None:
        """Now and then a job is suspended for up to two minutes, or killed."""
        chance = self.random.random()
        if chance < 0.002:
            raise Killed
        if chance < 0.02:
            self.sleep(self.random.uniform(0, 120))

    def run(self, jobs: list[Callable[[], None]]) -> None:
        for job in jobs:
            self.at(self.random.uniform(0, 20), partial(self._start, job))
        while self.events:
            self.now, _, action = heapq.heappop(self.events)
            action()

    def _start(self, job: Callable[[], None]) -> None:
        def body() -> None:
            self.turns[threading.get_ident()] = threading.Semaphore(0)
            try:
                job()
            finally:
                self.idle.release()

        threading.Thread(target=body, daemon=True).start()
        self.idle.acquire()


def refused(status: int, code: str) -> botocore.exceptions.ClientError:
    return botocore.exceptions.ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


@dataclass
class MemoryS3:
    """As much of S3's client as the lock needs, on a bad day."""

    world: World
    keeps_conditions: bool = True
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    outage: tuple[float, float] = (0.0, 0.0)

    def put_object(self, Bucket: str, Key: str, Body: bytes, IfMatch: str = "", IfNoneMatch: str = "") -> Any:
        def apply() -> dict[str, str]:
            tag = self.tag(Key)
            if self.keeps_conditions and ((IfMatch and IfMatch != tag) or (IfNoneMatch and tag)):
                raise refused(412, "PreconditionFailed")
            self.objects[Key] = Body
            return {"ETag": str(self.tag(Key))}

        return self.request(apply, conflicts=True)

    def get_object(self, Bucket: str, Key: str) -> Any:
        def apply() -> dict[str, Any]:
            if Key not in self.objects:
                raise refused(404, "NoSuchKey")
            return {"Body": io.BytesIO(self.objects[Key]), "ETag": self.tag(Key)}

        return self.request(apply)

    def tag(self, key: str) -> str | None:
        return hashlib.md5(self.objects[key]).hexdigest() if key in self.objects else None

    def request(self, apply: Callable[[], Any], conflicts: bool = False) -> Any:
        world = self.world
        world.stop()
        first, last = self.outage
        fault = "outage" if first <= world.now < last else self._fault(conflicts)
        self.faults[fault] += fault != ""
        world.sleep(world.random.expovariate(5))
        if fault in ("outage", "5xx"):
            raise refused(503, "SlowDown")
        if fault == "conflict":
            raise refused(409, "ConditionalRequestConflict")
        if fault == "late":  # the client gives up, the request arrives all the same
            world.at(world.now + world.random.uniform(0, 90), lambda: self._ignore(apply))
            world.sleep(30)
            raise botocore.exceptions.ReadTimeoutError(endpoint_url="memory")
        try:
            answer = apply()
        finally:
            if fault == "answer lost":
                world.sleep(30)
                raise botocore.exceptions.ReadTimeoutError(endpoint_url="memory")
            world.sleep(world.random.expovariate(5))
            world.stop()
        return answer

    def _fault(self, conflicts: bool) -> str:
        chance = self.world.random.random()
        for fault, upper in (("5xx", 0.02), ("answer lost", 0.04), ("late", 0.06), ("conflict", 0.08)):
            if chance < upper:
                return fault if conflicts or fault != "conflict" else ""
        return ""

    @staticmethod
    def _ignore(apply: Callable[[], Any]) -> None:
        with suppress(botocore.exceptions.ClientError):
            apply()


@dataclass
class Schedule:
    """Three jobs of one folder, and what they did."""

    world: World
    store: MemoryS3
    generations: list[tuple[int, str]] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def job(self, name: str) -> None:
        try:
            held = lock.acquire(FOLDER)
            self.generations.append((held.holder.generation, name))
            for part in range(PARTS):
                for _ in range(self.world.random.randrange(4)):  # work, with the beats of another thread
                    self.world.sleep(lock.BEAT_SECONDS)
                    try:
                        held.renew()
                    except StorageError:
                        continue
                held.renew()
                self.see(held, name)
                held.commit(f"{FOLDER}/part-{part}", f"part {part} by {name}".encode())
            held.release()
            self.ended["finished"] += 1
        except Killed:
            self.ended["killed"] += 1
        except UserError as error:
            self.ended[type(error).__name__] += 1

    def see(self, held: lock.Lock, name: str) -> None:
        """A job that was told that it holds the folder does hold it."""
        there = self.store.objects["batch/lock.json"]
        if held.holder.token.encode() not in there:
            self.violations.append(f"{name} was told at {self.world.now:.1f} s that it holds what another took over")


def play(seed: int, monkeypatch: pytest.MonkeyPatch, keeps_conditions: bool = True) -> Schedule:
    world = World(seed)
    store = MemoryS3(world, keeps_conditions)
    if world.random.random() < 0.3:
        first = world.random.uniform(0, 60)
        store.outage = first, first + world.random.uniform(5, 90)
    written: dict[str, bytes] = {}
    schedule = Schedule(world, store)
    monkeypatch.setattr(s3, "client", lambda attempts=0: store)
    monkeypatch.setattr(storage, "read_bytes", lambda uri: storage.read_tagged(uri)[0])
    monkeypatch.setattr(lock, "_now", lambda: world.now)
    monkeypatch.setattr(lock, "_sleep", world.sleep)
    monkeypatch.setattr(lock, "say", lambda *_: None)

    class Objects(dict[str, bytes]):
        def __setitem__(self, key: str, data: bytes) -> None:
            if "part-" in key and written.setdefault(key, data) != data:
                schedule.violations.append(f"{key} was committed twice")
            super().__setitem__(key, data)

    store.objects = Objects()
    world.run([partial(schedule.job, name) for name in "abc"])
    numbers = [generation for generation, _ in sorted(schedule.generations)]
    if len(set(numbers)) < len(numbers):
        schedule.violations.append(f"a generation was given twice: {schedule.generations}")
    return schedule


def test_no_schedule_has_two_committers(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    taken_over = 0
    for seed in range(SCHEDULES):
        schedule = play(seed, monkeypatch)
        assert not schedule.violations, f"seed {seed}: {schedule.violations}"
        ended += schedule.ended
        faults += schedule.store.faults
        taken_over += len(schedule.generations) > 1
    print(f"{SCHEDULES} schedules: jobs {dict(ended)}, faults {dict(faults)}, {taken_over} with several holders")
    # The schedules are worth something: every kind of end and of fault was among them.
    assert min(ended[end] for end in ("finished", "killed", "LockLost", "StorageError", "UserError")) > 10
    assert min(faults[fault] for fault in ("outage", "5xx", "answer lost", "late", "conflict")) > 100
    assert taken_over > SCHEDULES / 10


def test_the_schedules_find_a_server_that_ignores_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(play(seed, monkeypatch, keeps_conditions=False).violations for seed in range(100))


def test_the_schedules_find_a_job_that_trusts_an_old_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TRUSTED_SECONDS", 1000.0)
    assert any(play(seed, monkeypatch).violations for seed in range(1000))
