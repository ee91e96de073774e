"""Progress in one line every few seconds, readable on a terminal and in a job log."""

import time
from types import TracebackType

SECONDS_BETWEEN_LINES = 5.0


def printable(text: str) -> str:
    """`text` with control and other unprintable characters escaped: it may come from an untrusted file."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def say(stage: str, text: str) -> None:
    """Print one line, prefixed with the name of a stage."""
    print(f"[{stage:>8}] {printable(text)}", flush=True)


def duration(seconds: float) -> str:
    """75 -> `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def human_bytes(count: float) -> str:
    """A number of bytes with a unit: `707 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}"


def speed(per_second: float, unit: str) -> str:
    """`61 slices/s`; below 10 with two significant digits: `0.35 subjects/s`."""
    return f"{per_second:.0f} {unit}/s" if per_second >= 10 else f"{per_second:.2g} {unit}/s"


class Progress:
    """Counts units of work done, and estimates the rate and the time left.

    Used as a context manager, it prints them at the start and at the end; `advance` prints them every few seconds.
    """

    def __init__(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        """`done`: units that an earlier, interrupted job did; the rate leaves them out."""
        self.stage, self.total, self.unit, self.done = stage, total, unit, done
        self.earlier = done
        self.started = self.spoken = time.monotonic()

    def __enter__(self) -> "Progress":
        say(self.stage, f"{self.total} {self.unit}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            seconds = time.monotonic() - self.started
            say(
                self.stage,
                f"done: {self.done} {self.unit} in {duration(seconds)}, {speed(self.rate, self.unit)}",
            )

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return (self.done - self.earlier) / max(1e-3, time.monotonic() - self.started)

    def describe(self) -> str:
        """`61 slices/s, 3:20 left`."""
        rate = self.rate
        left = duration((self.total - self.done) / rate) if rate else "?"
        return f"{speed(rate, self.unit)}, {left} left"

    def undo(self, units: int) -> None:
        """Count `units` as not done, after a rollback. The rate keeps counting them: the time was spent on work."""
        self.done -= units
        self.earlier -= units

    def advance(self, units: int) -> None:
        """Count `units` more as done, and print a line if the last one is a few seconds old."""
        self.done += units
        now = time.monotonic()
        if now - self.spoken < SECONDS_BETWEEN_LINES or self.done >= self.total:
            return
        self.spoken = now
        say(self.stage, f"{self.done}/{self.total} {self.unit}, {self.describe()}")
