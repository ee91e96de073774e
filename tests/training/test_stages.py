"""The training loops on real Ray Train workers."""

import copy
import json
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import torch.distributed as dist

from oasisgen import cluster, storage
from oasisgen.config.data import OASIS
from oasisgen.config.folder import write_settings
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import RowNumbers, Stored, store
from oasisgen.data.slices import DataSet, read_slices, source_of
from oasisgen.errors import UserError
from oasisgen.lock import acquire
from oasisgen.models import bundle
from oasisgen.models.quantizer import EMAQuantizer
from oasisgen.pipelines import train as runs
from oasisgen.pipelines.train import train
from oasisgen.sampling.sample import Sampler
from oasisgen.training import checkpoint, history
from oasisgen.training.dcgan import train_dcgan
from oasisgen.training.encode import source_of as source_of_codes
from oasisgen.training.history import Epoch
from oasisgen.training.launch import Stage, complete, fit
from oasisgen.training.masked import train_masked
from oasisgen.training.stage import StageState, non_finite
from oasisgen.training.vqvae import train_vqvae
from oasisgen.training.worker import Worker, unwrap
from tests.conftest import tiny

MAPS = {"codes": "train", "held_out": "validate"}


def in_float32(**inputs: Any) -> None:
    """The loop of stage 1 on any hardware alike: Adam's first steps magnify what bfloat16 rounds off."""
    Worker.autocast = lambda _: nullcontext()  # type: ignore[assignment, method-assign]
    train_vqvae(**inputs)


def three_of_four(data: DataSet, out: Path) -> TrainConfig:
    """Four workers, room for three. Ray Train adds their CPUs up and divides, so these sums must be exact."""
    return replace(tiny(data, out), workers=4, min_workers=1, cpus_per_worker=0.3125 * cluster.cpus())


def stage_one(data: DataSet, out: Path, workers: int, feed: str) -> dict[str, Any]:
    """The final checkpoint of stage 1. No code dies: one on the edge of death may, by rounding, for one and not two."""
    config = (
        three_of_four(data, out) if workers == 3 else replace(tiny(data, out), workers=workers, cpus_per_worker=0.5)
    )
    smooth = replace(config.vqvae, learning_rate=1e-3, schedule="constant", dead_below=1e-9)  # no slow start
    config = replace(config, vqvae=smooth)
    inputs = {split: source_of(feed, data, split) for split in ("train", "validate")}
    return complete(Stage("vqvae", in_float32, inputs, best="ssim"), config)


@pytest.mark.slow
@pytest.mark.parametrize("feed", ["memory", "stream"])
def test_three_ranks_learn_what_one_does_and_agree_on_the_codebook(data: DataSet, tmp_path: Path, feed: str) -> None:
    """Of batches of 16, which three ranks cannot share evenly."""
    one, two = (stage_one(data, tmp_path / str(each), each, feed) for each in (1, 3))
    assert one["step"] == two["step"] == 12
    for a, b in zip(history.of(one), history.of(two), strict=True):
        assert a.metrics["reconstruction_loss"] == pytest.approx(b.metrics["reconstruction_loss"], rel=1e-3)
        assert a.metrics["ssim"] == pytest.approx(b.metrics["ssim"], abs=1e-3)
    for name, value in one["model"].items():
        apart = ~torch.isclose(two["model"][name], value, rtol=1e-2, atol=1e-3)
        # A vector halfway between two codes goes to either, by rounding: it moves those two.
        assert apart.float().mean() <= (0.05 if name.startswith("quantizer.") else 0.0), name
        assert torch.allclose(two["model"][name], value, rtol=1e-2, atol=0.05), name


def quantize(config: Any, worker: Worker, batches: list[torch.Tensor], uri: str) -> None:
    """Each rank sees every third slice of a batch, as in training; saves the codebook it ends with."""
    quantizer = EMAQuantizer(16, 3, commitment=0.25, decay=0.9, dead_below=0.1)
    for step, z in enumerate(batches):
        quantizer(z[worker.rank :: worker.world], torch.Generator().manual_seed(step), len(z))
        quantizer.step()
    torch.save(quantizer.state_dict(), os.path.join(uri, f"{worker.rank}.pt"))
    dist.barrier()


def test_codebooks_are_identical_on_all_ranks_and_follow_the_whole_batch(data: DataSet, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 3, 4, 4, generator=generator) for _ in range(6)]
    config = three_of_four(data, tmp_path)
    fit(Stage("quantizer", quantize, {"batches": batches, "uri": str(tmp_path)}), config)
    first, *others = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3))
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    torch.manual_seed(config.seed)
    alone = EMAQuantizer(16, 3, commitment=0.25, decay=0.9, dead_below=0.1)
    for step, z in enumerate(batches):
        alone(z, torch.Generator().manual_seed(step))
        alone.step()
    for name, value in alone.state_dict().items():
        assert torch.allclose(first[name], value, atol=1e-5)


def test_a_job_that_lost_its_run_writes_no_checkpoint(data: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config, lost = tiny(data, out), acquire(str(out))
    lost.release()
    acquire(str(out))  # another job's
    inputs = {split: store(read_slices(data, split)) for split in ("train", "validate")}
    with pytest.raises(UserError, match="another job took the run over while this one was silent"):
        complete(Stage("vqvae", train_vqvae, inputs, best="ssim"), config, lost.proof)
    assert not list(out.rglob("state.pt"))


def test_a_loss_that_is_no_number_stops_with_one_line(data: DataSet, tmp_path: Path) -> None:
    config = tiny(data, tmp_path / "run")
    config = replace(config, vqvae=replace(config.vqvae, learning_rate=1e30, schedule="constant"))
    with pytest.raises(
        UserError, match=r"stage vqvae, epoch \d: the loss is (nan|inf), after 3 rollbacks, .* --vqvae.learning-rate"
    ):
        train(config)
    assert not (tmp_path / "run" / "codes").exists()


def go_wrong(config: Any, worker: Worker, folder: str) -> None:
    """Epochs of one step; killed in the third one, which is rolled back twice."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    parts = {"network": network, "optimizer": optimizer}
    state = StageState(worker, config, "features", RowNumbers(config.features.batch_size), parts, ("loss",))

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = network(torch.ones(1, 2)).square().sum()
        loss.backward()
        optimizer.step()
        state.end_step(loss, share=1.0, line=str)
        return network.weight.detach().clone()

    if state.step == 0:
        weights = []
        for ssim in (0.9, 0.8):  # the best checkpoint is not the newest
            weights.append(step())
            assert state.mean_losses()["loss"] > 0
            state.end_epoch({"ssim": ssim}, "")
        torch.save([*weights, step()], f"{folder}/weights.pt")
        state.save()
        written = Path(folder) / "features" / "checkpoint_manager_snapshot.json"
        while json.loads(written.read_text())["latest_checkpoint_result"]["metrics"]["step"] != 3:
            time.sleep(0.1)  # Ray Train takes note of a checkpoint a little after the report
        os._exit(1)
    _, second, third = torch.load(f"{folder}/weights.pt", weights_only=True)
    assert (state.step, len(state.past)) == (3, 2)
    assert torch.equal(network.weight, third)
    torch.nn.init.constant_(network.weight, torch.nan)
    state.sums.fill_(torch.nan)
    for _ in range(2):  # to look changes nothing
        assert non_finite(state.mean_losses()) == "the loss is nan"
        assert state.step == 3
    assert state.roll_back_if(non_finite(state.mean_losses()))
    for rate in (0.5, 0.25):
        assert (state.step, state.lr_factor) == (2, rate)
        assert torch.equal(network.weight, second)
        assert torch.equal(step(), third)  # the optimizer's moments went back too
        if rate == 0.5:
            assert state.roll_back_if("a measure fell")
    assert state.mean_losses()["loss"] > 0
    state.end_epoch({"ssim": 0.95}, "")


def test_an_epoch_that_is_rolled_back_leaves_nothing_behind(data: DataSet, tmp_path: Path) -> None:
    fit(Stage("features", go_wrong, {"folder": str(tmp_path)}, best="ssim"), tiny(data, tmp_path))
    state = checkpoint.newest(str(tmp_path / "features"))
    assert state
    assert (state["step"], state["undone"]) == (3, 2)
    assert [(epoch.epoch, epoch.undone) for epoch in history.of(state)] == [(1, 0), (2, 0), (3, 2)]


def at_odds(config: Any, worker: Worker, rows: torch.Tensor, folder: str) -> None:
    """A step of three ranks, of which only the first sees that there is a checkpoint, or finds fault with the epoch."""
    if worker.rank:
        storage.list_files = lambda uri: iter(())
    network = ray.train.torch.prepare_model(torch.nn.Linear(2, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    parts = {"network": unwrap(network), "optimizer": optimizer}
    state = StageState(worker, config, "features", RowNumbers(len(rows)), parts, ("loss",))
    assert state.step == 2
    mine = rows[worker.rank :: worker.world]
    share = state.share(len(mine))
    loss = network(mine).square().mean()
    (loss * share).backward()
    optimizer.step()
    state.end_step(loss, share=share, line=str)
    learned = unwrap(network).weight.detach().clone()
    mean = state.mean_losses()["loss"]
    assert state.roll_back_if("" if worker.rank else "a measure fell")
    torch.save([mean, learned, state.step, unwrap(network).weight.detach()], f"{folder}/{worker.rank}.pt")


@pytest.mark.slow
def test_rank_0_decides_for_all_and_uneven_ranks_weigh_as_much_as_they_see(data: DataSet, tmp_path: Path) -> None:
    config = three_of_four(data, tmp_path)
    config = replace(config, features=replace(config.features, batch_size=16))
    torch.manual_seed(1)
    network, rows = torch.nn.Linear(2, 1), torch.randn(16, 2)  # 6, 5 and 5 rows
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    parts = {"network": copy.deepcopy(network.state_dict()), "optimizer": optimizer.state_dict()}
    saved = tmp_path / "features" / "checkpoint_1"
    saved.mkdir(parents=True)
    past = [Epoch(epoch, epoch, {}, 80.0, 0).to_json() for epoch in (1, 2)]
    at_two = {"history": past, "step": 2, "undone": 0, "sums": torch.zeros(1)}
    checkpoint.write(parts | at_two, saved)
    fit(Stage("features", at_odds, {"rows": rows, "folder": str(tmp_path)}), config)
    before = network.weight.detach().clone()
    loss = network(rows).square().mean()
    loss.backward()
    optimizer.step()
    for rank in range(3):
        mean, learned, step, weight = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert mean == pytest.approx(loss.item(), rel=1e-5)
        assert torch.allclose(learned, network.weight, rtol=1e-5)
        assert step == 2
        assert torch.equal(weight, before)


def ends_early(config: Any, worker: Worker) -> None:
    """One epoch, whatever the configuration says."""
    state = StageState(worker, config, "features", RowNumbers(config.features.batch_size), {}, ("loss",))
    state.end_step(torch.ones(()), share=1.0, line=str)
    state.end_epoch(state.mean_losses(), "")


@pytest.mark.usefixtures("in_process")
def test_a_stage_that_is_not_over_is_not_used(data: DataSet, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    config = replace(config, features=replace(config.features, epochs=2))
    with pytest.raises(UserError, match=r"stage features is only at epoch 1 of 2 .*: run the command again"):
        complete(Stage("features", ends_early, {}), config)


@pytest.mark.usefixtures("in_process")
def test_an_epoch_in_which_ssim_falls_is_trained_again_at_half_the_rate(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.9, 0.84, 0.86])
    monkeypatch.setattr("oasisgen.training.vqvae.score", lambda *_: {"ssim": next(found), "codes_in_use": 1})
    config, inputs = tiny(data, tmp_path), {split: store(read_slices(data, split)) for split in ("train", "validate")}
    config = replace(config, vqvae=replace(config.vqvae, schedule="constant"))
    epochs = history.of(complete(Stage("vqvae", train_vqvae, inputs, best="ssim"), config))
    assert [(epoch.step, epoch.metrics["ssim"], epoch.undone) for epoch in epochs] == [(6, 0.9, 0), (12, 0.86, 1)]
    assert [epoch.metrics["learning_rate"] for epoch in epochs] == [0.004, 0.002]


@pytest.mark.usefixtures("in_process")
def test_a_generator_that_collapses_is_stopped(data: DataSet, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    maps = {"codes": random.integers(0, 512, (96, 64, 64)).astype("uint16"), "level": np.arange(96) % 32}
    config = tiny(data, tmp_path)
    blind = replace(config.dcgan, pca_prior=False, components=0, learning_rate=1e4)
    inputs = {"codes": Stored((ray.put(maps),)), "codebook": torch.randn(512, 4), "shape": OASIS}
    with pytest.raises(UserError, match=r"stage dcgan, epoch 1: \w+ of generated maps is .*, after 3 rollbacks"):
        complete(Stage("dcgan", train_dcgan, inputs), replace(config, dcgan=blind))


def killed_once(mark: str, **inputs: Any) -> None:
    """The loop of the masked prior, killed in the middle of its first epoch, after it has saved."""
    end_step = StageState.end_step

    def end_and_die(state: StageState, *losses: torch.Tensor, **rest: Any) -> None:
        end_step(state, *losses, **rest)
        if state.step == 10 and not os.path.exists(mark):
            state.save()
            Path(mark).touch()
            os._exit(1)

    StageState.end_step = end_and_die  # type: ignore[method-assign, assignment]
    train_masked(**inputs)


def test_the_masked_prior_is_trained_on_the_same_codes_and_sampled_alike(
    data: DataSet, trained: Path, tmp_path: Path
) -> None:
    """In the place of the DCGAN of a finished run, whose other stages are done, and whose feature network is that of
    the data set. Its code maps are streamed; interrupted in an epoch, it ends the same."""
    shape: dict[str, Any] = {"components": 8, "channels": 8, "decoding_steps": 3, "positions": 256}
    state: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 0.02}
    config = tiny(data, tmp_path / "run")
    config = replace(config, prior="masked", feed="stream", masked=replace(config.masked, **shape, **state))
    write_settings(config.out, asdict(config) | {"data_fingerprint": data.fingerprint})
    for name in ("vqvae", "labels", "metrics", "codes"):
        shutil.copytree(trained / name, tmp_path / "run" / name)
    train(config)
    first, second = history.read(str(tmp_path / "run" / "metrics"), "masked")
    assert (first.step, second.step) == (24, 48)
    assert second.metrics["loss"] < first.metrics["loss"]
    assert "the masked prior" in (tmp_path / "run" / "report" / "index.html").read_text()
    assert not (tmp_path / "run" / "model" / "dcgan.safetensors").exists()
    features, expected = (run / "model" / "features.safetensors" for run in (tmp_path / "run", trained))
    assert features.read_bytes() == expected.read_bytes()
    assert not (tmp_path / "run" / "features").exists()  # it was not trained again
    one, two = (Sampler(str(tmp_path / "run"), 0).sample(np.arange(16, 32)) for _ in range(2))
    assert np.array_equal(one["image"], two["image"])
    assert one["level"].tolist() == list(range(16, 32))

    maps = {name: source_of_codes("stream", str(trained / "codes"), split, (64, 64)) for name, split in MAPS.items()}
    codebook = bundle.read_bundle(str(trained)).vqvae.quantizer.codebook
    inputs = {"mark": str(tmp_path / "killed"), "codebook": codebook, "shape": OASIS, **maps}
    state = complete(Stage("masked", killed_once, inputs), replace(config, out=str(tmp_path / "other")))
    assert (tmp_path / "killed").exists()
    for undisturbed, resumed in zip((first, second), history.of(state), strict=True):
        assert resumed.metrics == pytest.approx(undisturbed.metrics, abs=1e-6)


def test_workers_that_do_not_fit_are_refused_before_anything_starts(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"16 workers x 100 CPUs and 1 CPU for data tasks need 1601 CPUs, the cluster has"
    ):
        train(replace(tiny(data, tmp_path / "run"), workers=16, cpus_per_worker=100.0))
    assert not (tmp_path / "run").exists()


def test_a_run_that_asks_for_fewer_workers_if_need_be_starts_with_room_for_these(data: DataSet, tmp_path: Path) -> None:
    config = replace(tiny(data, tmp_path / "run"), workers=16, cpus_per_worker=cluster.cpus() - 1, dry_run=True)
    with pytest.raises(UserError, match="16 workers"):
        train(config)
    assert train(replace(config, min_workers=1)) is None


def test_a_batch_larger_than_the_split_is_refused(data: DataSet, tmp_path: Path) -> None:
    config = tiny(data, tmp_path / "run")
    with pytest.raises(UserError, match=r"dcgan.batch_size is 500: must be at most 96"):
        train(replace(config, dcgan=replace(config.dcgan, batch_size=500)))


def test_metrics_are_lines_and_tensorboard_events(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for kind, name in (("vqvae", "ssim"), ("dcgan", "generator_loss")):
        epochs = history.read(str(trained / "metrics"), kind)
        assert [(epoch.epoch, epoch.step) for epoch in epochs] == [(1, 6), (2, 12)]
        events = EventAccumulator(str(trained / "metrics" / "tensorboard" / kind))
        events.Reload()
        scalars = events.Scalars(f"{kind}/{name}")
        assert [event.step for event in scalars] == [6, 12]
        assert [event.value for event in scalars] == pytest.approx([epoch.metrics[name] for epoch in epochs])


def test_a_report_is_of_its_bundle_and_a_prior_of_its_vqvae(
    data: DataSet, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "model" / "dcgan.safetensors").write_bytes(b"")  # so that the bundle is written again
    monkeypatch.setattr(runs, "samples", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny(data, run))
    assert bundle.is_whole(str(run / "model"))
    assert not (run / "report" / "index.html").exists()
    monkeypatch.undo()
    (run / "dcgan" / "codes.json").write_text('{"vqvae": "another"}\n')
    with pytest.raises(UserError, match=r"/dcgan was trained on the codes of another VQ-VAE"):
        train(tiny(data, run))
