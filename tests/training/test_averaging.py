import torch
from torch import nn

from oasisgen.training.averaging import average


def test_averaged_weights_follow_slowly_and_statistics_at_once() -> None:
    averaged, current = (nn.BatchNorm1d(1) for _ in range(2))
    expected = averaged.weight.item()
    for step in range(1, 300):
        nn.init.constant_(current.weight, float(step))
        current.running_mean.fill_(step)  # type: ignore[union-attr]
        average(averaged, current, 0.9, step)
        decay = min(0.9, step / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert averaged.running_mean == current.running_mean
    assert torch.allclose(averaged.weight, torch.tensor(expected))
    assert 299 - averaged.weight.item() > 5  # about 0.9 / 0.1 steps behind


def test_without_decay_the_average_is_the_last() -> None:
    averaged, current = nn.Linear(3, 3), nn.Linear(3, 3)
    average(averaged, current, 0.0, 7)
    assert torch.equal(averaged.weight, current.weight)
