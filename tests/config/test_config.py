import dataclasses
from typing import Any

import pytest

from oasisgen.config.folder import differences
from oasisgen.config.presets import BASELINE, DEMO, FULL
from oasisgen.config.ranges import in_ranges, number_ranges
from oasisgen.config.train import DCGANConfig, MaskedConfig, TrainConfig, VQVAEConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("channels", 7),
        ("codebook_size", 1),
        ("codebook_ema_decay", 1.0),
        ("dead_below", 0.0),
        ("crop", 130),
        ("crop", 516),
        ("learning_rate", 0.0),
        ("commitment", -1.0),
    ],
)
def test_an_impossible_value_is_named_with_what_is_allowed(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"vqvae\.{field} is {value}: must be "):
        VQVAEConfig(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("epochs", 0), ("beta1", 1.0), ("shift", 64), ("weight_ema_decay", 1.0)])
def test_stage_two_is_checked_too(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"dcgan\.{field} is {value}: must be "):
        DCGANConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("positions", 4097), ("decoding_steps", 0), ("temperature", 0.0), ("redrawn", 1.1)]
)
def test_the_masked_prior_too(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"masked\.{field} is {value}: must be "):
        MaskedConfig(**{field: value})


def test_a_batch_must_divide_among_the_workers() -> None:
    with pytest.raises(ValueError, match=r"vqvae\.batch_size is 16: must be a multiple of workers \(3\)"):
        TrainConfig(data="d", out="o", workers=3)


@pytest.mark.parametrize(("gpus", "workers"), [(0.5, 2), (1.5, 1), (-1.0, 1)])
def test_two_workers_do_not_share_a_gpu(gpus: float, workers: int) -> None:
    with pytest.raises(
        ValueError, match=rf"gpus_per_worker is {gpus}: must be a whole number, or below 1 for a single"
    ):
        TrainConfig(data="d", out="o", workers=workers, gpus_per_worker=gpus)
    assert TrainConfig(data="d", out="o", workers=1, gpus_per_worker=0.5).gpus_per_worker == 0.5
    assert TrainConfig(data="d", out="o", workers=2, gpus_per_worker=2.0).gpus_per_worker == 2.0


def test_the_baseline_preset_is_the_report_that_started_the_project() -> None:
    v, d = BASELINE.vqvae, BASELINE.dcgan
    assert (v.channels, v.code_dim, v.codebook_size, v.residual_blocks) == (256, 256, 512, 2)
    assert (v.quantizer, v.commitment, v.norm, v.loss_scale) == ("gradient", 1.0, "batch", "none")
    assert (v.batch_size, v.epochs, v.crop, v.learning_rate, v.schedule) == (32, 20, 256, 3e-4, "constant")
    assert (v.ssim_weight, v.max_grad_norm, v.weight_ema_decay, v.max_ssim_drop) == (0.0, 0.0, 0.0, 1.0)
    assert (d.embedding, d.conditional, d.pca_prior, d.loss, d.spectral_norm) == ("index", False, False, "bce", False)
    assert (d.components, d.commitment, d.r1_weight) == (0, 0.0, 0.0)
    assert (d.latent_dim, d.batch_size, d.epochs, d.learning_rate, d.beta1) == (100, 32, 40, 2e-4, 0.5)
    assert (d.shift, d.noise, d.weight_ema_decay, d.collapse_threshold) == (0, 0.0, 0.0, 0.0)


def test_demo_is_full_made_small() -> None:
    """Its prior has more components, and begins with what they say, because it is hardly trained; small batches make
    more steps of an epoch."""
    demo, full = dataclasses.asdict(DEMO), dataclasses.asdict(FULL)
    for name in ("components", "low_rank_logits", "redrawn"):
        assert demo["masked"].pop(name) != full["masked"].pop(name)
    assert demo["labels"].pop("learning_rate") > full["labels"].pop("learning_rate")
    for name in ("data", "out"):
        assert demo.pop(name) is full.pop(name)
    smaller = {"epochs", "channels", "residual_blocks", "batch_size", "validate_slices"}
    for stage in ("vqvae", "dcgan", "masked", "features", "labels"):
        small, large = demo.pop(stage), full.pop(stage)
        changed = {name for name in small if small[name] != large[name]}
        assert changed <= smaller
        assert all(small[name] < large[name] for name in changed)
    assert demo == full


def test_batch_norm_may_be_averaged_in_both_stages() -> None:
    assert VQVAEConfig(norm="batch", weight_ema_decay=0.999).norm == "batch"


def test_differences_name_both_values_and_leave_out_where_the_run_computes() -> None:
    old = dataclasses.asdict(TrainConfig(data="d", out="a", workers=1))
    new = dataclasses.asdict(TrainConfig(data="d", out="b", workers=2, vqvae=VQVAEConfig(epochs=7)))
    assert differences(old, new) == ["vqvae.epochs 20 -> 7"]


def test_levels_are_listed_and_checked() -> None:
    assert number_ranges("levels", "10-12,3", 32) == [3, 10, 11, 12]
    for wrong in ("32", "5-3", "a", "", "1-", "-4"):
        with pytest.raises(ValueError, match=r"levels is .*: must be like 10-20,25, within 0-31"):
            number_ranges("levels", wrong, 32)


def test_a_run_goes_on_wherever_its_data_set_lies_now() -> None:
    old = {"data": "/mnt/a/datasets/oasis", "data_fingerprint": "f", "seed": 0}
    assert differences(old, old | {"data": "s3://bucket/datasets/oasis"}) == []
    assert differences(old, old | {"data_fingerprint": "g"}) == ["data_fingerprint f -> g"]
    assert differences(old, old | {"feed": "memory"}) == []  # as in versions without that setting
    assert differences(old, old | {"feed": "stream"}) == ["feed memory -> stream"]
    assert differences(old, old | {"masked": {"redrawn": 0.0}}) == []
    assert differences(old, old | {"masked": {"redrawn": 0.2}}) == ["masked.redrawn 0.0 -> 0.2"]
    changed = differences(old, old | {"masked": {"low_rank_logits": True}})
    assert changed == ["masked.low_rank_logits False -> True"]


@pytest.mark.parametrize("text", ["0-31", "8-15", "3", "3,5", "0-2,7,9-10"])
def test_ranges_are_written_as_they_are_read(text: str) -> None:
    assert in_ranges(number_ranges("levels", text, 32)) == text
