import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from oasisgen.config.data import OASIS, Shape
from oasisgen.errors import UserError
from oasisgen.models.bundle import read_bundle, read_features, read_vqvae
from oasisgen.quality.batch import FeatureExtractor
from oasisgen.quality.reconstruction import Reconstructor


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def test_a_bundle_reads_the_same_from_the_run_and_from_a_copy(trained: Path, bundle: Path) -> None:
    a, b = read_bundle(str(trained)), read_bundle(str(bundle))
    assert a.digest == b.digest
    for name in ("vqvae", "prior", "features", "labels"):
        mine, theirs = getattr(a, name).state_dict(), getattr(b, name).state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert sorted(file.name for file in bundle.iterdir()) == [
        "README.md",
        "config.json",
        "dcgan.safetensors",
        "features.safetensors",
        "labels.safetensors",
        "metrics.json",
        "vqvae.safetensors",
    ]


def test_the_digest_names_the_weights(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    before = read_bundle(str(bundle)).digest
    config["seed"] += 1
    (bundle / "config.json").write_text(json.dumps(config))
    assert read_bundle(str(bundle)).digest != before


@pytest.mark.parametrize(
    ("actor", "read"),
    [(FeatureExtractor, read_features), (Reconstructor, read_vqvae)],
    ids=["features", "reconstruction"],
)
def test_an_actor_refuses_a_bundle_that_was_replaced_since_the_job_read_it(actor: Any, read: Any, bundle: Path) -> None:
    load = partial(read, str(bundle), expected=read_bundle(str(bundle)).digest)
    actor(load)
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"seed": 99}))  # whole, and another one
    with pytest.raises(UserError, match=r"^bundle .* was replaced, \w{12} by \w{12}: put the old one back, .*$"):
        actor(load)


@pytest.mark.parametrize("name", ["vqvae.safetensors", "dcgan.safetensors", "features.safetensors"])
def test_a_damaged_file_is_named(bundle: Path, name: str) -> None:
    whole = (bundle / name).read_bytes()
    (bundle / name).write_bytes(whole[:-8])
    with pytest.raises(UserError, match=f"{name} is truncated or changed"):
        read_bundle(str(bundle))
    (bundle / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name} is truncated or changed"):
        read_bundle(str(bundle))
    (bundle / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        read_bundle(str(bundle))


def test_a_bundle_knows_its_size_and_levels_and_refuses_data_of_others(trained: Path, bundle: Path) -> None:
    whole = read_bundle(str(bundle))
    whole.require_shape("elsewhere", OASIS)
    for other, said in (
        (replace(OASIS, levels=20), "20 levels of 256 x 256 pixels"),
        (Shape(128, 192, 32), "32 levels of 128 x 192 pixels"),
    ):
        both = f"^model .* has 32 levels of 256 x 256 pixels, data set elsewhere has {said}: name a data set with the"
        with pytest.raises(UserError, match=both):
            whole.require_shape("elsewhere", other)
    config = json.loads((bundle / "config.json").read_text())
    for field in ("image_size", "levels", "trained_levels"):
        del config["data"][field]  # as bundles of older versions have it
    (bundle / "config.json").write_text(json.dumps(config))
    older = read_bundle(str(bundle))
    assert (older.shape, older.trained_levels) == (OASIS, list(range(32)))
    config["data"]["image_size"] = [100, 100]
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"do not fit its config.json \(height is 100: must be a multiple of 32"):
        read_bundle(str(bundle))


def test_no_bundle_and_a_broken_description_are_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model bundle at"):
        read_bundle(str(tmp_path / "nothing"))
    (bundle / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is missing or damaged"):
        read_bundle(str(bundle))
    (bundle / "config.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="has format 99"):
        read_bundle(str(bundle))
