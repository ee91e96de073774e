"""Fidelity by Inception's features: what it takes, and that a batch is measured by them."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torchvision.models import inception_v3

from oasisgen.errors import UserError
from oasisgen.models.inception import Inception, digest, read_inception
from oasisgen.quality.batch import FeatureExtractor
from tests.conftest import one_line, run_job


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as torchvision's, of a network that learned nothing."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), file)
    return file


def test_features_are_the_pooled_ones_of_torchvision(weights: Path) -> None:
    theirs = inception_v3(weights=None, init_weights=False)
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    pooled = []
    theirs.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    x = torch.rand(2, 1, 299, 299) * 2 - 1
    theirs.eval()(x.repeat(1, 3, 1, 1))
    features = read_inception(str(weights))(x)
    assert features.shape == (2, Inception.num_features)
    assert torch.allclose(features, pooled[0], atol=1e-5)
    assert read_inception(str(weights))(torch.zeros(1, 1, 256, 256)).shape == (1, 2048)


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights at \S+none: "):
        digest(str(tmp_path / "none"))
    (tmp_path / "text").write_text("weights")
    with pytest.raises(UserError, match=r"no weights at \S+text/none: "):
        digest(str(tmp_path / "text" / "none"))
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("other.pth", "text"):
        with pytest.raises(UserError, match=rf"{name} does not hold the weights of torchvision's inception_v3"):
            digest(str(tmp_path / name))


def test_weights_that_were_replaced_since_the_job_read_them_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    mine = tmp_path / "weights.pth"
    torch.save(state, mine)
    load = partial(read_inception, str(mine), expected=digest(str(mine)))
    FeatureExtractor(load)
    torch.save(state | {"fc.bias": state["fc.bias"] + 1}, mine)
    with pytest.raises(UserError, match=r"^weights .*weights\.pth were replaced while the job ran: put the old .*$"):
        FeatureExtractor(load)


@pytest.mark.infra
def test_a_batch_is_measured_by_them(trained: Path, batch: Path, weights: Path, tmp_path: Path) -> None:
    flags = ["--model", str(trained), "--out", str(tmp_path / "b"), "--count", "40", "--base-seed", "5"]
    done = run_job("generate", *flags, "--inception", str(weights))
    assert done.returncode == 3, done.stderr
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (batch, tmp_path / "b"))
    assert theirs["features"] == theirs["inception"] == digest(str(weights)) != ours["features"]
    assert theirs["measures"]["ms_ssim"] == ours["measures"]["ms_ssim"]
    assert theirs["measures"]["fid"] != ours["measures"]["fid"]
    refused = run_job("generate", *flags)
    assert refused.returncode == 1
    assert "inception" in one_line(refused.stderr)
