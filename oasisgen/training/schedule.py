"""Learning-rate schedules."""

import math

from oasisgen.config.train import VQVAEConfig

WARM_UP_STEPS = 100


def learning_rate(config: VQVAEConfig, step: int, steps: int) -> float:
    """The learning rate at a step in [0, steps): constant, or a linear warm-up and cosine decay to zero."""
    if config.schedule == "constant":
        return config.learning_rate
    return cosine(config.learning_rate, step, steps)


def cosine(peak: float, step: int, steps: int) -> float:
    """The learning rate at a step in [0, steps): a linear warm-up and cosine decay from `peak` to zero."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return peak * warm_up * 0.5 * (1.0 + math.cos(math.pi * step / steps))
