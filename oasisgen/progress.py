"""One line of progress every few seconds: reads well on a terminal and in a job log."""

import time
from types import TracebackType

SECONDS_BETWEEN_LINES = 5.0


def printable(text: str) -> str:
    """`text` with what a terminal would obey, or cannot show, escaped: it may come from somebody's file."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def say(stage: str, text: str) -> None:
    """Print one line under a stage's name."""
    print(f"[{stage:>8}] {printable(text)}", flush=True)


def duration(seconds: float) -> str:
    """75 -> `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Bytes in words: `707 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}"


class Progress:
    """Counts units of work and says now and then how far it is, how fast, and how long it will take."""

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self.stage, self.total, self.unit, self.done = stage, total, unit, 0
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
                f"done: {self.done} {self.unit} in {duration(seconds)}, {self.done / seconds:.0f} {self.unit}/s",
            )

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return self.done / max(1e-3, time.monotonic() - self.started)

    def advance(self, units: int) -> None:
        """Count `units` more."""
        self.done += units
        now = time.monotonic()
        if now - self.spoken < SECONDS_BETWEEN_LINES or self.done >= self.total:
            return
        self.spoken = now
        rate = self.rate
        left = duration((self.total - self.done) / rate) if rate else "?"
        say(self.stage, f"{self.done}/{self.total} {self.unit}, {rate:.0f} {self.unit}/s, {left} left")
