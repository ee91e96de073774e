"""The label decoder, and bundles with one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from oasisgen import storage
from oasisgen.config.data import OASIS
from oasisgen.config.train import DCGANConfig, LabelsConfig, VQVAEConfig
from oasisgen.data.description import LabelClass
from oasisgen.errors import InvalidFile
from oasisgen.models.bundle import read_bundle, weights_of, write_bundle
from oasisgen.models.features import FeatureNetwork
from oasisgen.models.labels import LabelDecoder
from oasisgen.models.priors import make_prior
from oasisgen.models.vqvae import VQVAE

SMALL = LabelsConfig(channels=8)
CLASSES = [LabelClass("background", 0), LabelClass("CSF", 85), LabelClass("grey matter", 170)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (96, 160)])
def test_a_label_map_has_the_size_of_its_slice(height: int, width: int) -> None:
    decoder = LabelDecoder(SMALL, 4, 5)
    vectors = torch.randn(2, 4, height // 4, width // 4)
    logits, labels = decoder(vectors), decoder.label_map(vectors)
    assert logits.shape == (2, 5, height, width)
    assert labels.shape == (2, height, width)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, logits.argmax(1))


def write(folder: Path, decoder: LabelDecoder | None, **more: Any) -> str:
    """A bundle of small untrained networks; the same ones at every call."""
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(channels=8, residual_channels=4))
    settings = asdict(DCGANConfig(channels=8, components=4))
    prior = make_prior("dcgan", settings, vqvae.quantizer.codebook.detach(), OASIS)
    described: dict[str, Any] = {
        "data": {"uri": "d", "fingerprint": "f"},
        "vqvae": asdict(VQVAEConfig(channels=8, residual_channels=4)),
    }
    described |= {"prior": "dcgan", "dcgan": settings, **more}
    number = {"mean": 0.5, "low": 0.4, "high": 0.6}
    metrics = {
        "reconstruction": {"ssim": number, "codes_in_use": 3},
        "label_dice": {"CSF": 0.5},
    }
    return write_bundle(
        str(folder), described, vqvae, prior, weights_of(FeatureNetwork(OASIS)), metrics, storage.write_bytes, decoder
    )


def test_a_bundle_gives_its_label_decoder_back_and_one_without_is_as_before(tmp_path: Path) -> None:
    decoder = LabelDecoder(SMALL, 4, 3)
    classes = [asdict(of) for of in CLASSES]
    write(tmp_path / "with", decoder, labels=asdict(SMALL), label_classes=classes)
    bundle = read_bundle(str(tmp_path / "with"))
    assert bundle.labels
    for name, value in decoder.state_dict().items():
        assert torch.equal(bundle.labels.state_dict()[name], value)
    assert bundle.described.label_classes == tuple(CLASSES)
    assert "CSF 0.500\n" in (tmp_path / "with" / "README.md").read_text()

    write(tmp_path / "without", None)
    bundle = read_bundle(str(tmp_path / "without"))
    assert (bundle.labels, bundle.described.label_classes) == (None, ())
    assert "label" not in (tmp_path / "without" / "config.json").read_text()
    assert "abel" not in (tmp_path / "without" / "README.md").read_text()
    assert not (tmp_path / "without" / "labels.safetensors").exists()


def test_a_label_decoder_that_does_not_fit_its_classes_is_one_line(tmp_path: Path) -> None:
    classes = [asdict(of) for of in CLASSES]
    for n, more in enumerate(({"label_classes": classes}, {"label_classes": classes[:2]}, {})):
        write(tmp_path / str(n), LabelDecoder(SMALL, 4, 3) if n else None, labels=asdict(SMALL), **more)
        with pytest.raises(InvalidFile, match="do not fit") as raised:
            read_bundle(str(tmp_path / str(n)))
        assert "\n" not in str(raised.value)
