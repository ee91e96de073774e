"""The label decoder, and bundles with one."""

import json
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from oasisgen import __version__, storage
from oasisgen.config.data import OASIS
from oasisgen.config.train import DCGANConfig, FeaturesConfig, LabelsConfig, VQVAEConfig
from oasisgen.data.description import LabelClass
from oasisgen.errors import InvalidFile
from oasisgen.models.bundle import BundleSettings, TrainedOn, read_bundle, weights_of, write_bundle
from oasisgen.models.features import FeatureNetwork
from oasisgen.models.labels import LabelDecoder
from oasisgen.models.priors import make_prior
from oasisgen.models.vqvae import VQVAE
from tests.conftest import METRICS

VQ, PRIOR = VQVAEConfig(channels=8, residual_channels=4), DCGANConfig(channels=8, components=4)
SMALL = LabelsConfig(channels=8)
CLASSES = (LabelClass("background", 0), LabelClass("CSF", 85), LabelClass("grey matter", 170))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (96, 160)])
def test_a_label_map_has_the_size_of_its_slice(height: int, width: int) -> None:
    decoder = LabelDecoder(SMALL, 4, 5)
    vectors = torch.randn(2, 4, height // 4, width // 4)
    logits, labels = decoder(vectors), decoder.label_map(vectors)
    assert logits.shape == (2, 5, height, width)
    assert labels.shape == (2, height, width)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, logits.argmax(1))


def write(folder: Path, decoder: LabelDecoder | None, **labels: Any) -> str:
    """A bundle of small untrained networks; the same ones at every call."""
    torch.manual_seed(0)
    vqvae = VQVAE(VQ)
    prior = make_prior("dcgan", asdict(PRIOR), vqvae.quantizer.codebook.detach(), OASIS)
    data, features = TrainedOn("d", "f"), FeaturesConfig()
    settings = BundleSettings(
        seed=0, data=data, vqvae=VQ, prior="dcgan", prior_settings=PRIOR, features=features, **labels
    )
    metrics = replace(METRICS, label_dice={"CSF": 0.5, "grey matter": 0.25} if decoder else None)
    weights = weights_of(FeatureNetwork(OASIS))
    return write_bundle(str(folder), settings, vqvae, prior, weights, metrics, storage.write_bytes, decoder)


def test_a_bundle_gives_its_label_decoder_back_and_one_without_is_as_before(tmp_path: Path) -> None:
    decoder = LabelDecoder(SMALL, 4, 3)
    write(tmp_path / "with", decoder, labels=SMALL, label_classes=CLASSES)
    bundle = read_bundle(str(tmp_path / "with"))
    assert bundle.labels
    for name, value in decoder.state_dict().items():
        assert torch.equal(bundle.labels.state_dict()[name], value)
    assert bundle.described.label_classes == CLASSES
    assert "Dice on the validate split: CSF 0.500, grey matter 0.250\n" in (tmp_path / "with" / "README.md").read_text()

    assert bundle.label_subjects == 0
    few = replace(SMALL, subjects=7)
    write(tmp_path / "few", decoder, labels=few, label_classes=CLASSES)
    assert read_bundle(str(tmp_path / "few")).label_subjects == 7
    assert "0.250; learned from label maps of 7 subjects alone\n" in (tmp_path / "few" / "README.md").read_text()

    write(tmp_path / "without", None)
    bundle = read_bundle(str(tmp_path / "without"))
    assert (bundle.labels, bundle.described.label_classes) == (None, ())
    assert "label" not in (tmp_path / "without" / "config.json").read_text()
    assert "abel" not in (tmp_path / "without" / "README.md").read_text()
    assert not (tmp_path / "without" / "labels.safetensors").exists()


CARD = """# oasisgen model {digest}

A VQ-VAE and a prior over its code maps (a DCGAN) that generate axial
T1-weighted brain MRI slices (256 x 256 pixels, 8 bit, 32 levels).

- Trained on: `d` (fingerprint `f`)
- Written by: oasisgen {version}
- Reconstruction SSIM on the validate split: 0.5000 (95 % interval 0.4000 to 0.6000)
- Codes in use: 3 of 512{labels}
- Research use only, not for diagnosis. Synthetic slices can resemble training slices: read the batch's report.

`config.json` holds the architecture and the digests of the weights; the weights are safetensors.
"""


@pytest.mark.parametrize("labelled", [True, False])
def test_the_json_and_the_card_of_a_bundle_are_byte_for_byte_these(labelled: bool, tmp_path: Path) -> None:
    some: dict[str, Any] = {"labels": SMALL, "label_classes": CLASSES} if labelled else {}
    digest = write(tmp_path, LabelDecoder(SMALL, 4, 3) if labelled else None, **some)
    networks = ("vqvae", "dcgan", "features", *(("labels",) if labelled else ()))
    files = {f"{name}.safetensors": sha256((tmp_path / f"{name}.safetensors").read_bytes()) for name in networks}
    data = {"uri": "d", "fingerprint": "f", "image_size": [256, 256], "levels": 32, "trained_levels": None}
    classes = [{"name": each.name, "value": each.value} for each in CLASSES]
    config = {
        "format": 3,
        "version": __version__,
        "seed": 0,
        "data": data,
        "vqvae": asdict(VQ),
        "prior": "dcgan",
        "dcgan": asdict(PRIOR),
        "features": asdict(FeaturesConfig()),
        **({"labels": asdict(SMALL), "label_classes": classes} if labelled else {}),
        "files": {name: digest.hexdigest() for name, digest in files.items()},
    }
    number = {"mean": 0.5, "low": 0.4, "high": 0.6}
    reconstruction = {
        "data": {"uri": "d", "fingerprint": "f"},
        "split": "validate",
        "slices": 2,
        "cases": 1,
        "ssim": number,
        "psnr_db": number,
        "codes_in_use": 3,
        "codes_in_use_percent": 1.0,
        "perplexity": 2.0,
    }
    dice = {"label_dice": {"CSF": 0.5, "grey matter": 0.25}} if labelled else {}
    metrics = {"reconstruction": reconstruction, "code_counts": [1, 0, 5], **dice}
    shown = "\n- Label maps of its slices; Dice on the validate split: CSF 0.500, grey matter 0.250" if labelled else ""
    assert (tmp_path / "config.json").read_text() == json.dumps(config, indent=2) + "\n"
    assert (tmp_path / "metrics.json").read_text() == json.dumps(metrics, indent=2) + "\n"
    card = CARD.format(digest=digest[:12], version=__version__, labels=shown)
    assert (tmp_path / "README.md").read_text() == card


def test_a_label_decoder_that_does_not_fit_its_classes_is_one_line(tmp_path: Path) -> None:
    for n, classes in enumerate((CLASSES, CLASSES[:2], ())):
        write(tmp_path / str(n), LabelDecoder(SMALL, 4, 3) if n else None, labels=SMALL, label_classes=classes)
        with pytest.raises(InvalidFile, match="do not fit") as raised:
            read_bundle(str(tmp_path / str(n)))
        assert "\n" not in str(raised.value)
