"""Bundles of format 2, which name settings and tensors as older versions did, give the same networks."""

import json
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from oasisgen import storage
from oasisgen.config.data import OASIS
from oasisgen.config.renamed import SETTINGS
from oasisgen.config.train import DCGANConfig, FeaturesConfig, MaskedConfig, PriorName, VQVAEConfig
from oasisgen.models.bundle import OLD_TENSORS, BundleSettings, TrainedOn, read_bundle, weights_of, write_bundle
from oasisgen.models.features import FeatureNetwork
from oasisgen.models.priors import make_prior
from oasisgen.models.vqvae import VQVAE
from tests.conftest import METRICS

VQ = VQVAEConfig(channels=8, residual_channels=4)


def old_settings(group: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a group under the names of format 2."""
    old = {new: name for name, new in SETTINGS[group].items()}
    return {old.get(name, name): value for name, value in settings.items()}


def old_tensor(name: str) -> str:
    """The name of a prior's tensor in format 2."""
    for old, new in OLD_TENSORS:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def as_format_2(bundle: Path, prior: str) -> None:
    """Rewrite a bundle as an older version would have written it."""
    config = json.loads((bundle / "config.json").read_text())
    weights = bundle / f"{prior}.safetensors"
    tensors = {old_tensor(name): value for name, value in safetensors.torch.load(weights.read_bytes()).items()}
    weights.write_bytes(safetensors.torch.save(tensors))
    config["format"] = 2
    config["files"][weights.name] = sha256(weights.read_bytes()).hexdigest()
    for group in ("vqvae", prior):
        config[group] = old_settings(group, config[group])
    for added in ("redrawn", "low_rank_logits"):
        config[prior].pop(added, None)
    (bundle / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "settings", "old_setting", "old_name"),
    [
        ("dcgan", DCGANConfig(channels=8, components=4), "palette", "template.mean"),
        ("masked", MaskedConfig(channels=8, components=4, redrawn=0.2), "rounds", "guesser.head.weight"),
    ],
)
def test_a_bundle_of_format_2_is_read_to_the_same_networks(
    kind: PriorName, settings: DCGANConfig | MaskedConfig, old_setting: str, old_name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vqvae = VQVAE(VQ)
    prior = make_prior(kind, asdict(settings), vqvae.quantizer.codebook.detach(), OASIS)
    written = BundleSettings(
        seed=0,
        data=TrainedOn("d", "f"),
        vqvae=VQ,
        prior=kind,
        prior_settings=settings,
        features=FeaturesConfig(),
    )
    write_bundle(str(tmp_path), written, vqvae, prior, weights_of(FeatureNetwork(OASIS)), METRICS, storage.write_bytes)
    today = read_bundle(str(tmp_path))

    as_format_2(tmp_path, kind)
    config = json.loads((tmp_path / "config.json").read_text())
    assert old_setting in config[kind]
    assert config["vqvae"]["ema_decay"] == VQ.codebook_ema_decay
    assert old_name in safetensors.torch.load((tmp_path / f"{kind}.safetensors").read_bytes())
    old = read_bundle(str(tmp_path))

    expected = replace(settings, redrawn=0.0) if isinstance(settings, MaskedConfig) else settings
    assert old.prior.config == expected  # it draws no codes again, as when it was written
    for name in ("vqvae", "prior", "features"):
        mine, theirs = getattr(old, name).state_dict(), getattr(today, name).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
