"""The settings of a segmenter, and where and how it is trained."""

from dataclasses import dataclass, field

from oasisgen.config.check import check, check_finite, check_least


@dataclass(frozen=True)
class SegmenterConfig:
    """The segmenter: a U-Net (Ronneberger et al. 2015, arXiv:1505.04597) from a slice to the class of each pixel."""

    channels: int = 16
    """Feature channels at full resolution; they double with each of three halvings."""
    dice_weight: float = 1.0
    """Weight of the soft Dice loss, which is added to the cross-entropy. 0 disables it."""
    epochs: int = 3
    """Epochs; each has as many steps, whatever pairs the segmenter is trained on."""
    batch_size: int = 16
    """Pairs per step, over all workers together."""
    learning_rate: float = 3e-3
    """Peak learning rate of Adam; it falls to zero along a cosine."""

    def __post_init__(self) -> None:
        check_finite(self, "segmenter.")
        check_least(self, "segmenter", 1, "channels", "epochs", "batch_size")
        check_least(self, "segmenter", 0, "dice_weight")
        check("segmenter.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")


@dataclass(frozen=True)
class SegmenterTraining:
    """Where a segmenter is trained, and on what. The checkpoints lie in `<out>/segmenter`."""

    out: str
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    seed: int = 0
    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    min_workers: int = 0
    checkpoint_seconds: float = 30.0
