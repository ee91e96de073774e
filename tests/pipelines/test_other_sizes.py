"""Data sets of other sizes and numbers of levels, from raw slices to a measured batch."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oasisgen.config.data import Shape
from oasisgen.config.generate import GenerateConfig
from oasisgen.config.pack import PackConfig
from oasisgen.config.train import MaskedConfig, PriorName
from oasisgen.data.pack import pack
from oasisgen.data.phantom import write_phantoms
from oasisgen.data.slices import open_data_set
from oasisgen.errors import UserError
from oasisgen.pipelines.evaluate import evaluate_bundle
from oasisgen.pipelines.generate import generate
from oasisgen.pipelines.train import train
from tests.conftest import tiny


@pytest.mark.slow
@pytest.mark.usefixtures("connected", "hardly_told_apart")
@pytest.mark.parametrize(
    ("shape", "labels", "prior"), [(Shape(192, 160, 20), True, "masked"), (Shape(320, 320, 8), False, "dcgan")]
)
def test_a_data_set_of_another_size_goes_from_raw_slices_to_a_measured_batch(
    shape: Shape, labels: bool, prior: PriorName, trained: Path, tmp_path: Path
) -> None:
    """With label maps, and without."""
    raw, packed, run, batch = (str(tmp_path / name) for name in ("raw", "packed", "run", "batch"))
    write_phantoms(raw, {"train": 4, "validate": 2}, seed=0, shape=shape)
    for folder in [] if labels else (tmp_path / "raw").glob("keras_png_slices_seg_*"):
        shutil.rmtree(folder)
    pack(PackConfig(raw, packed))
    data = open_data_set(packed)
    assert data.shape == shape
    config = replace(tiny(data, run), prior=prior, masked=MaskedConfig(channels=8, components=8, epochs=1))
    vqvae, dcgan = replace(config.vqvae, epochs=1), replace(config.dcgan, epochs=1)
    model = train(replace(config, vqvae=vqvae, dcgan=dcgan))
    assert model

    summary = generate(GenerateConfig(model, batch, count=2 * shape.levels))
    assert summary
    assert summary.verdict == "quarantined"  # so little training
    assert summary.slices_per_level == {str(level): 2 for level in range(shape.levels)}
    images = [np.asarray(Image.open(png)) for png in (tmp_path / "batch" / "slices").rglob("*.png")]
    assert [image.shape for image in images] == 2 * shape.levels * [shape.image_size]
    maps = [np.asarray(Image.open(png)) for png in (tmp_path / "batch" / "labels").rglob("*.png")]
    assert [each.shape for each in maps] == (2 * shape.levels * [shape.image_size] if labels else [])
    assert ("tissue_area" in summary.scores) == labels

    evaluation = evaluate_bundle(model, data, "validate", str(tmp_path / "evaluation"))
    assert evaluation.slices == 2 * shape.levels
    with pytest.raises(UserError, match=f"data set {packed} has {shape}: name a data set"):
        evaluate_bundle(str(trained), data, "validate", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
