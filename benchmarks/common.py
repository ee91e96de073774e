"""What the benches share: their slices, a process of its own for what is measured, and comparisons in turn."""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from oasisgen.data.slices import DataSet

ROUNDS = 3


def real_slices() -> str:
    """The folder of real slices, which this bench cannot do without."""
    source = os.environ.get("OASISGEN_OASIS_DIR")
    if not source:
        sys.exit("OASISGEN_OASIS_DIR is not set: this bench needs real slices")
    return source


def packed(folder: str, validate: int) -> tuple[str, "DataSet"]:
    """The real slices of OASISGEN_OASIS_DIR, else virtual subjects, `validate` of them held out: raw, and packed."""
    from oasisgen.config.pack import PackConfig
    from oasisgen.data.pack import pack
    from oasisgen.data.phantom import write_phantoms
    from oasisgen.data.slices import open_data_set

    source = os.environ.get("OASISGEN_OASIS_DIR")
    if not source:
        source = f"{folder}/raw"
        write_phantoms(source, {"train": 60, "validate": validate}, seed=0)
    pack(PackConfig(source, f"{folder}/data"))
    return source, open_data_set(f"{folder}/data")


def alone(module: str, *arguments: str, variables: Mapping[str, str] | None = None) -> float:
    """The number that `python -m MODULE ARGUMENT …` prints, run by itself with these variables too."""
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | dict(variables or {})
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def compare(candidates: Mapping[str, Callable[[], float]]) -> None:
    """Measure all in turn, several times; print medians, and the first's ratio to each other one, round by round."""
    rounds = [{name: measure() for name, measure in candidates.items()} for _ in range(ROUNDS)]
    first, *others = candidates
    print(f"{first}: {statistics.median(each[first] for each in rounds):.1f} per s", flush=True)
    for name in others:
        rate = statistics.median(each[name] for each in rounds)
        ratio = statistics.median(each[first] / each[name] for each in rounds)
        print(f"  against {name}, {rate:.1f} per s: ratio {ratio:.2f}", flush=True)


def private_memory(process: int | str = "self") -> float:
    """Of a process, in MB: what it does not share, mapped files not counted."""
    return memory_of(process, "RssAnon")


def memory_of(process: int | str, kind: str) -> float:
    """A line of a process's status, in MB: `RssAnon` or `RssShmem`; 0 if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        if kind in status:
            return int(status[kind].split()[0]) / 1024
    return 0.0


class Memory(NamedTuple):
    """What this process and its Ray held at one moment, in MB."""

    time: float  # of the clock that all processes of the machine share, seconds
    private: list[float]  # of each process
    store: float  # of the object store


@contextmanager
def watched_memory() -> Iterator[list[Memory]]:
    """A list that gets a sample every second until the end."""
    from oasisgen import processes

    samples: list[Memory] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            ids = [os.getpid(), *(process.pid for process in processes.started())]
            store = max(memory_of(pid, "RssShmem") for pid in ids)
            samples.append(Memory(time.monotonic(), [private_memory(pid) for pid in ids], store))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        over.set()
        watcher.join()
