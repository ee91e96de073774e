"""A stage's metrics, one line per epoch, as JSON lines and as TensorBoard events."""

import json
import tempfile
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from typing_extensions import TypedDict

from oasisgen import documents, storage
from oasisgen.documents import Count


class Epoch(TypedDict):
    """What every line has; the metrics stand beside it."""

    epoch: Count
    step: Count


def write(uri: str, stage: str, history: list[dict[str, Any]]) -> None:
    """Write `<stage>.jsonl` anew and the last epoch's TensorBoard events, under names that a repeated epoch reuses.

    Storage may not be able to append: one small event file per epoch, in an order TensorBoard follows by name.
    """
    storage.write_text(storage.join(uri, f"{stage}.jsonl"), "".join(json.dumps(line) + "\n" for line in history))
    last = history[-1]
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in last.items():
                if name not in ("epoch", "step"):
                    writer.add_scalar(f"{stage}/{name}", value, last["step"])
        (events,) = Path(folder).iterdir()
        name = f"events.out.tfevents.{last['epoch']:010d}.{stage}"
        storage.write_bytes(storage.join(uri, "tensorboard", stage, name), events.read_bytes())


def read(uri: str, stage: str) -> list[dict[str, Any]]:
    """The lines of `<stage>.jsonl`. Raises FileNotFoundError, and InvalidFile that names a damaged line.

    A job needs none of them: a stage's checkpoints hold its history too, and it writes the file anew at each epoch.
    """
    file = storage.join(uri, f"{stage}.jsonl")
    return [
        dict(documents.parse(line, Epoch, f"{file}, line {number},"))
        for number, line in enumerate(storage.read_bytes(file).splitlines(), 1)
    ]
