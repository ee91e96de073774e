"""What a trained model scored on held-out slices."""

from dataclasses import asdict, dataclass
from typing import Any

from oasisgen.documents import Count, Finite
from oasisgen.metrics.bootstrap import Interval


@dataclass(frozen=True)
class MeasuredData:
    """The data set whose slices were reconstructed."""

    uri: str
    fingerprint: str


@dataclass(frozen=True)
class ReconstructionScores:
    """How well a model reconstructs a split, as `evaluation.json` and a bundle's `metrics.json` have it."""

    data: MeasuredData
    split: str
    slices: Count
    cases: Count
    ssim: Interval
    psnr_db: Interval
    codes_in_use: Count
    codes_in_use_percent: Finite
    perplexity: Finite


@dataclass(frozen=True)
class BundleMetrics:
    """`metrics.json` of a bundle."""

    reconstruction: ReconstructionScores
    code_counts: tuple[int, ...]  # (K,): how often each code occurs in the split
    label_dice: dict[str, float] | None = None  # of each class; None without a label decoder

    def to_json(self) -> dict[str, Any]:
        """As the file has it, which does not name Dice without a label decoder."""
        dice = {} if self.label_dice is None else {"label_dice": self.label_dice}
        return {"reconstruction": asdict(self.reconstruction), "code_counts": list(self.code_counts), **dice}
