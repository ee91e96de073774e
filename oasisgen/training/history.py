"""A stage's metrics, one line per epoch, as JSON lines and as TensorBoard events."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from oasisgen import documents, storage
from oasisgen.documents import Count


@dataclass(frozen=True)
class Epoch:
    """A finished epoch of a stage."""

    epoch: Count  # counted from 1
    step: Count  # the last one, counted over all epochs
    metrics: Mapping[str, float | int]  # float first: errors then say "valid number"
    slices_per_s: float
    undone: Count  # rollbacks of the stage so far

    def to_json(self) -> dict[str, Any]:
        """As files and checkpoints have it: the metrics stand beside the other fields."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            **self.metrics,
            "slices_per_s": self.slices_per_s,
            "undone": self.undone,
        }


def write(uri: str, stage: str, history: Sequence[Epoch]) -> None:
    """Rewrite `<stage>.jsonl`, and write the last epoch's TensorBoard events to a file that a repeated epoch replaces.

    Storage may not support appending, so each epoch has a small event file; TensorBoard reads them sorted by name.
    """
    lines = [epoch.to_json() for epoch in history]
    storage.write_text(storage.join(uri, f"{stage}.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
    last = history[-1]
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in lines[-1].items():
                if name not in ("epoch", "step"):
                    writer.add_scalar(f"{stage}/{name}", value, last.step)
        (events,) = Path(folder).iterdir()
        name = f"events.out.tfevents.{last.epoch:010d}.{stage}"
        storage.write_bytes(storage.join(uri, "tensorboard", stage, name), events.read_bytes())


def read(uri: str, stage: str) -> list[Epoch]:
    """The epochs in `<stage>.jsonl`. Raises FileNotFoundError, and InvalidFile that names a damaged line.

    Training does not need this file: checkpoints hold the history too, and every epoch rewrites the file.
    """
    file = storage.join(uri, f"{stage}.jsonl")
    lines = storage.read_bytes(file).splitlines()
    return [_parse(line, f"{file}, line {number},") for number, line in enumerate(lines, 1)]


def of(state: dict[str, Any]) -> list[Epoch]:
    """The finished epochs in a checkpoint's state. Raises InvalidFile if a field of one is missing or wrong."""
    lines = [json.dumps(line).encode() for line in state["history"]]
    return [_parse(line, f"a checkpoint's history, epoch {number},") for number, line in enumerate(lines, 1)]


def _parse(line: bytes, name: str) -> Epoch:
    fields = documents.parse(line, dict, name)
    metrics = {key: value for key, value in fields.items() if key not in Epoch.__dataclass_fields__}
    return documents.parse(json.dumps(fields | {"metrics": metrics}).encode(), Epoch, name)
