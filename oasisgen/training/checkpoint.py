"""What a checkpoint holds, when it is written, and how it is read.

`state.pt`: tensors, numbers and lists only, so that it is read with `weights_only=True`. Beside it `state.json`: how
far the stage had come, and the digest of `state.pt`.
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

STATE, MARK = "state.pt", "state.json"


# What zipfile and torch.load raise where bytes are not what was written.
DAMAGED = (EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile)


@dataclass(frozen=True, order=True)
class Saved:
    """A checkpoint in storage. Of two, the greater one is the newer: no clock is asked."""

    rollbacks: int  # epochs; each time the steps go back
    step: int
    uri: str
    sha256: str = ""  # of its state; checkpoints that oasisgen 0.1.0 wrote at first have none


def write(state: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint's files into a folder on this machine."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    (folder / STATE).write_bytes(data)
    mark = {"undone": state["undone"], "step": state["step"], "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MARK).write_text(json.dumps(mark) + "\n")


def newest(uri: str) -> dict[str, Any] | None:
    """The newest state among a stage's checkpoints that can be read, on the CPU; None at the start of a run.

    Storage may have lost a part of a file, in a power cut for example: the one before then serves. Ray keeps a list
    of checkpoints of its own, but in the order of the metric by which it keeps the best ones, and that file is lost
    as easily.
    """
    return next((state for _, state in _states(uri)), None)


def best(uri: str, metric: str) -> Saved:
    """The checkpoint at the end of the epoch with the highest `metric`, among those that a stage keeps.

    Raises UserError where none of them can be read.
    """
    ends = [
        (state["history"][-1][metric], saved)
        for saved, state in _states(uri)
        if state["history"] and "good" not in state  # which those within an epoch have
    ]
    if not ends:
        raise UserError(f"{uri}: no checkpoint of the end of an epoch can be read: train again, with another --out")
    return max(ends)[1]


def restore_vqvae(saved: Saved, config: VQVAEConfig) -> VQVAE:
    """The VQ-VAE in a checkpoint of stage 1, in evaluation mode."""
    model = VQVAE(config)
    model.load_state_dict(_read(saved)["averaged"])
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # as in a bundle


def _states(uri: str) -> Iterator[tuple[Saved, dict[str, Any]]]:
    """The checkpoints of a stage that can be read, each with its state, the newest first."""
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
    """The checkpoint in a folder, as its mark says. Raises InvalidFile where that is damaged."""
    match storage.read_json(storage.join(uri, MARK)):
        case {"undone": int(rollbacks), "step": int(step), "sha256": str(sha256)} if sha256:
            return Saved(rollbacks, step, uri, sha256)
    raise InvalidFile(f"{uri}/{MARK} is damaged")


def _read(saved: Saved) -> dict[str, Any]:
    """The state in a checkpoint. Raises InvalidFile where it is not what was written."""
    uri = storage.join(saved.uri, STATE)
    data = storage.read_bytes(uri)
    if saved.sha256 and hashlib.sha256(data).hexdigest() != saved.sha256:
        raise InvalidFile(f"{uri} is not what was written: run the command again")
    try:
        if not saved.sha256 and zipfile.ZipFile(io.BytesIO(data)).testzip():  # torch.load compares no checksums
            raise InvalidFile(f"{uri} is damaged: run the command again")
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise InvalidFile(f"{uri} is damaged ({error}): run the command again") from None
    return state
