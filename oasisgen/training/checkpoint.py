"""Write and read the checkpoints of a stage.

A checkpoint is two files. `state.pt` holds only tensors, numbers and lists, so that `weights_only=True` can read it.
`state.json` holds the progress of the stage, and the digest of `state.pt`.
"""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oasisgen import storage
from oasisgen.config.train import VQVAEConfig
from oasisgen.errors import InvalidFile, UserError
from oasisgen.models.vqvae import VQVAE
from oasisgen.training import history

STATE, MARK = "state.pt", "state.json"


# What zipfile and torch.load raise for damaged files.
DAMAGED = (EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True, order=True)
class Saved:
    """A checkpoint in storage. The greater of two is the newer, by rollbacks and step, so no clocks are compared."""

    rollbacks: int  # epochs rolled back so far; each rollback reduces the step
    step: int
    uri: str
    sha256: str = ""  # of `state.pt`; missing in checkpoints of early builds of oasisgen 0.1.0


def write(state: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint's files to a local folder."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    (folder / STATE).write_bytes(data)
    mark = {"undone": state["undone"], "step": state["step"], "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MARK).write_text(json.dumps(mark) + "\n")


def newest(uri: str) -> dict[str, Any] | None:
    """The state in a stage's newest readable checkpoint, on the CPU; None at the start of a run.

    If the newest file is damaged, by a power failure for example, the checkpoint before it is used. Ray's own list of
    checkpoints is no help: it is sorted by the metric that selects the best ones, and can be damaged just as easily.
    """
    return next((state for _, state in _states(uri)), None)


def best(uri: str, metric: str) -> Saved:
    """The end-of-epoch checkpoint with the highest `metric`, among those that a stage keeps.

    Raises UserError if none of them can be read.
    """
    ends = [
        (history.of(state)[-1].metrics[metric], saved)
        for saved, state in _states(uri)
        if state["history"] and "good" not in state  # "good" marks checkpoints within an epoch
    ]
    if not ends:
        raise UserError(f"{uri}: no end-of-epoch checkpoint can be read: train again, with another --out")
    return max(ends)[1]


def restore_vqvae(saved: Saved, config: VQVAEConfig) -> VQVAE:
    """The VQ-VAE in a checkpoint of stage 1, in evaluation mode."""
    model = VQVAE(config)
    model.load_state_dict(_read(saved)["averaged"])
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # as in a bundle


def _states(uri: str) -> Iterator[tuple[Saved, dict[str, Any]]]:
    """The readable checkpoints of a stage with their states, newest first."""
    for saved in sorted(_find(uri), reverse=True):
        try:
            state = _read(saved)
        except (FileNotFoundError, InvalidFile):
            continue
        yield saved, state


def _find(uri: str) -> Iterator[Saved]:
    """The checkpoints of a stage, in any order."""
    files: set[str] = set()
    with suppress(FileNotFoundError):
        files = {name for name, _ in storage.list_files(uri)}
    for folder in {name.rpartition("/")[0] for name in files if name.endswith(f"/{STATE}")}:
        found = storage.join(uri, folder)
        try:
            if storage.join(folder, MARK) in files:
                saved = _marked(found)
            else:
                state = _read(Saved(0, 0, found))
                saved = Saved(state.get("undone", 0), state["step"], found)
        except (FileNotFoundError, InvalidFile):
            continue
        yield saved


def _marked(uri: str) -> Saved:
    """The checkpoint in a folder, from its `state.json`. Raises InvalidFile if that is damaged."""
    match storage.read_json(storage.join(uri, MARK)):
        case {"undone": int(rollbacks), "step": int(step), "sha256": str(sha256)} if sha256:
            return Saved(rollbacks, step, uri, sha256)
    raise InvalidFile(f"{uri}/{MARK} is damaged")


def _read(saved: Saved) -> dict[str, Any]:
    """The state in a checkpoint. Raises InvalidFile if `state.pt` is damaged."""
    uri = storage.join(saved.uri, STATE)
    data = storage.read_bytes(uri)
    if saved.sha256 and hashlib.sha256(data).hexdigest() != saved.sha256:
        raise InvalidFile(f"{uri} is not the file that was written (other sha256): run the command again")
    try:
        if not saved.sha256 and zipfile.ZipFile(io.BytesIO(data)).testzip():  # torch.load compares no checksums
            raise InvalidFile(f"{uri} is damaged: run the command again")
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise InvalidFile(f"{uri} is damaged ({error}): run the command again") from None
    return state
