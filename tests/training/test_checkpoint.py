"""How the checkpoints of a stage are found again, without Ray's own list of them."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch

from oasisgen import storage
from oasisgen.config.presets import DEMO
from oasisgen.data.feed import RowNumbers
from oasisgen.errors import UserError
from oasisgen.lock import LockLost, acquire
from oasisgen.training import checkpoint
from oasisgen.training.checkpoint import best, newest
from oasisgen.training.history import Epoch
from oasisgen.training.launch import drop_damaged_list
from oasisgen.training.stage import StageState
from oasisgen.training.worker import Driver, Worker


def write(place: str, name: str, state: dict[str, Any]) -> str:
    """A checkpoint as Ray Train leaves it, and as runs have them that were begun before there was a `state.json`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    uri = storage.join(place, f"checkpoint_{name}")
    storage.write_bytes(storage.join(uri, "state.pt"), buffer.getvalue())
    return uri


def ended(*ssims: float) -> dict[str, Any]:
    """The state at the end of the last of some epochs."""
    epochs = [Epoch(epoch, epoch, {"ssim": value}, 80.0, 0) for epoch, value in enumerate(ssims, 1)]
    return {"history": [epoch.to_json() for epoch in epochs], "step": len(ssims)}


def test_the_newest_that_can_be_read_and_the_best_at_the_end_of_an_epoch(place: str) -> None:
    assert newest(place) is None
    write(place, "2026-11-24_01", ended(0.8))
    second = write(place, "2026-11-24_02", ended(0.8, 0.9))
    write(place, "2026-11-24_03", ended(0.8, 0.9, 0.85))
    write(place, "2026-11-24_04", ended(0.8, 0.9, 0.95) | {"step": 7, "good": {}})  # within the fourth epoch
    assert newest(place) == ended(0.8, 0.9, 0.95) | {"step": 7, "good": {}}
    assert best(place, "ssim").uri == second
    whole = storage.read_bytes(storage.join(place, "checkpoint_2026-11-24_04/state.pt"))
    storage.write_bytes(storage.join(place, "checkpoint_2026-11-24_04/state.pt"), whole[:100])
    assert newest(place) == ended(0.8, 0.9, 0.85)


def test_the_newest_is_the_one_with_the_most_steps_whatever_the_clock_said(place: str) -> None:
    write(place, "2026-11-24_05", ended(0.8) | {"step": 900, "undone": 0})
    write(place, "2026-11-25_01", ended(0.8) | {"step": 100, "undone": 0})  # on a node whose clock was ahead
    assert newest(place) == ended(0.8) | {"step": 900, "undone": 0}
    write(place, "2026-11-24_04", ended(0.8) | {"step": 600, "undone": 1})  # went back to the end of an epoch
    assert newest(place) == ended(0.8) | {"step": 600, "undone": 1}


@pytest.mark.parametrize("marked", [True, False])
def test_a_checkpoint_that_lost_a_block_is_never_read(tmp_path: Path, marked: bool) -> None:
    """A power cut may leave a file of the right size with zeros in it. Older checkpoints have no `state.json`."""
    before = ended(0.8) | {"undone": 0}
    write(str(tmp_path), "2026-11-24_01", before)
    weights = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    last = tmp_path / "checkpoint_2026-11-24_02"
    last.mkdir()
    checkpoint.write(ended(0.8, 0.9) | {"undone": 0, "weights": weights}, last)
    if not marked:
        (last / "state.json").unlink()
    assert newest(str(tmp_path))["weights"].equal(weights)  # type: ignore[index]
    whole = (last / "state.pt").read_bytes()
    for first in range(0, len(whole) - 4096, 4096):
        (last / "state.pt").write_bytes(whole[:first] + bytes(4096) + whole[first + 4096 :])
        assert newest(str(tmp_path)) == before, first
    (last / "state.pt").write_bytes(whole)
    (last / "state.json").write_text("{}" if marked else "")  # cut short
    assert newest(str(tmp_path)) == before


def test_a_job_that_lost_its_run_reports_nothing_for_which_ray_train_would_remove_a_checkpoint(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train keeps two checkpoints of those that a job reports: the other job's would be among those it removes."""
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.train, "report", lambda metrics, checkpoint: reported.append(metrics))
    held = acquire(place)
    worker = Worker(0, 1, torch.device("cpu"), Driver(None, held.proof))
    config = replace(DEMO, out=place)
    state = StageState(worker, config, "features", RowNumbers(config.features.batch_size), {}, ("loss",))
    state.end_step(torch.ones(()), share=1.0, line=str)
    state.save()
    assert reported == [{"step": 1}]  # as long as it holds the run

    held.release()
    acquire(place)  # by another job, which has come further
    for step in (2, 3):
        write(f"{place}/features", f"2026-11-24_0{step}", ended(*range(step)))
    storage.write_text(f"{place}/metrics/features.jsonl", "{}\n")
    before = {name: storage.read_bytes(f"{place}/{name}") for name, _ in storage.list_files(place)}
    for saves in (state.save, lambda: state.end_epoch({"loss": 1.0}, "")):
        with pytest.raises(LockLost, match="another job took the run over while this one was silent"):
            saves()
    assert reported == [{"step": 1}]
    assert {name: storage.read_bytes(f"{place}/{name}") for name, _ in storage.list_files(place)} == before


def test_a_stage_whose_ends_of_epochs_are_all_lost_says_so(tmp_path: Path) -> None:
    write(str(tmp_path), "2026-11-24_01", ended(0.8) | {"good": {}})
    with pytest.raises(UserError, match="no end-of-epoch checkpoint can be read"):
        best(str(tmp_path), "ssim")


@pytest.mark.parametrize(("text", "stays"), [("", False), ('{"checkpoint_results": [', False), ("{}", True)])
def test_a_damaged_list_is_removed(place: str, text: str, stays: bool) -> None:
    uri = storage.join(place, "checkpoint_manager_snapshot.json")
    drop_damaged_list(place)
    storage.write_text(uri, text)
    drop_damaged_list(place)
    assert storage.exists(uri) == stays
