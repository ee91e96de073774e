import copy

import torch
import torch.nn.functional as F
from torch import nn

from oasisgen.config.train import VQVAEConfig
from oasisgen.data.phantom import subject
from oasisgen.data.pixels import to_unit
from oasisgen.models.vqvae import VQVAE
from oasisgen.training.averaging import average


def test_averaged_weights_follow_slowly_and_statistics_at_once() -> None:
    averaged, current = (nn.BatchNorm1d(1) for _ in range(2))
    expected = averaged.weight.item()
    for step in range(299):
        nn.init.constant_(current.weight, float(step))
        current.running_mean.fill_(step)  # type: ignore[union-attr]
        average(averaged, current, 0.9, step)
        decay = min(0.9, (step + 1) / (11 + step))
        expected = decay * expected + (1 - decay) * step
        assert averaged.running_mean == current.running_mean
    assert torch.allclose(averaged.weight, torch.tensor(expected))
    assert 298 - averaged.weight.item() > 5  # about 0.9 / 0.1 steps behind


def test_without_decay_the_average_is_the_last() -> None:
    averaged, current = nn.Linear(3, 3), nn.Linear(3, 3)
    average(averaged, current, 0.0, 7)
    assert torch.equal(averaged.weight, current.weight)


def test_with_batch_norm_an_averaged_vqvae_reconstructs_as_well_as_the_latest() -> None:
    torch.manual_seed(0)
    config = VQVAEConfig(channels=16, residual_channels=8, residual_blocks=1, norm="batch", weight_ema_decay=0.999)
    x = to_unit(torch.from_numpy(subject(0, 1)).unsqueeze(1))[..., 64:128, 64:128]  # (32, 1, 64, 64)
    latest = VQVAE(config)
    averaged = copy.deepcopy(latest).requires_grad_(False)
    optimizer = torch.optim.Adam(latest.parameters(), lr=config.learning_rate)
    random = torch.Generator().manual_seed(0)
    for step in range(60):
        rows = torch.randint(0, len(x), (8,), generator=random)
        y = latest(x[rows], random, 8)
        optimizer.zero_grad()
        (F.mse_loss(y.image, x[rows]) + y.quantizer_loss).backward()
        optimizer.step()
        latest.quantizer.step()
        average(averaged, latest, config.weight_ema_decay, step)
    with torch.no_grad():
        errors = [float(F.mse_loss(network.eval()(x).image, x)) for network in (averaged, latest)]
    assert errors[0] < 1.1 * errors[1] < 0.2 * float(x.var())
