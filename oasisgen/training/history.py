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
    """The fields of every line, besides the metrics."""

    epoch: Count
    step: Count


def write(uri: str, stage: str, history: list[dict[str, Any]]) -> None:
    """Rewrite `<stage>.jsonl`, and write the last epoch's TensorBoard events to a file that a repeated epoch replaces.

    Storage may not support appending, so each epoch has a small event file; TensorBoard reads them sorted by name.
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

    Training does not need this file: checkpoints hold the history too, and every epoch rewrites the file.
    """
    file = storage.join(uri, f"{stage}.jsonl")
    return [
        dict(documents.parse(line, Epoch, f"{file}, line {number},"))
        for number, line in enumerate(storage.read_bytes(file).splitlines(), 1)
    ]
