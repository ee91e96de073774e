"""The one table of measures. Gate, summary, reports, printed lines and `docs/measures.md` read it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from oasisgen.config.generate import GateConfig, Reject
from oasisgen.documents import Finite

Worse = Literal["higher", "lower", "higher or lower"]


@dataclass(frozen=True)
class GateRule:
    """How the gate judges a measure of a batch."""

    tolerance: str
    """The field of GateConfig that holds the tolerance."""
    relative: bool
    """The tolerance is a factor of the reference; otherwise it is the difference to it."""
    fault: str
    """What the gate says of a batch that is out of bounds."""


@dataclass(frozen=True)
class SliceRule:
    """How `--reject` judges a single slice: it must not score below 99 % of held-out real slices."""

    reject: Reject
    """The value of `--reject` that applies this rule."""
    useless: float
    """A threshold at or below this value rejects nothing."""
    fault: str
    """What is said of a slice below the threshold."""


@dataclass(frozen=True)
class Measure:
    """A row of the table."""

    key: str
    """Its name in `summary.json` and, if it has one value per slice, its column in the summary."""
    label: str
    """Its heading in reports."""
    sees: str
    """What it measures, in one sentence without its full stop."""
    worse: Worse
    """The direction, away from the reference, in which a batch gets worse."""
    of_slices: bool = False
    """It has a value for each slice; that of the batch is their mean."""
    gate: GateRule | None = None
    """None: shown, but not judged."""
    reject: SliceRule | None = None

    def __post_init__(self) -> None:
        for name in ("key", "label", "sees"):
            if not getattr(self, name).strip():
                raise ValueError(f"a measure needs a {name}: {self!r}")

    def bounds(self, reference: float, gate: GateConfig) -> tuple[float, float]:
        """The least and the most that the gate accepts, -inf and inf where it sets no bound."""
        if not self.gate:
            return -math.inf, math.inf
        tolerance = float(getattr(gate, self.gate.tolerance))
        least = reference * tolerance if self.gate.relative else reference - tolerance
        most = reference * tolerance if self.gate.relative else reference + tolerance
        return -math.inf if self.worse == "higher" else least, math.inf if self.worse == "lower" else most


MEASURES = {
    measure.key: measure
    for measure in (
        Measure(
            "ssim_train_max",
            "SSIM to the nearest training slice",
            "SSIM to the training slice it is most similar to; 1 is a copy",
            worse="higher",
            of_slices=True,
        ),
        Measure(
            "copy_ratio",
            "copy ratio",
            "distance (1 - SSIM) to the nearest training slice over that to the nearest held-out one; 0 is a copy",
            worse="lower",
            of_slices=True,
            reject=SliceRule("copies", 0.01, "suspected copy"),  # a copy has 0
        ),
        Measure(
            "ssim_real",
            "SSIM to real slices",
            "mean SSIM to held-out real slices of the same level",
            worse="higher or lower",
            of_slices=True,
            gate=GateRule("ssim_real", False, "not as near to real slices as they are to each other"),
            reject=SliceRule("outliers", 0.0, "unlike real slices"),  # a slice unlike all others has about 0
        ),
        Measure(
            "ms_ssim",
            "MS-SSIM",
            "mean MS-SSIM between pairs of slices of one level; the higher, the less variety",
            worse="higher",
            gate=GateRule("ms_ssim", False, "too little variety"),
        ),
        Measure(
            "fid",
            "FID",
            "Fréchet distance between the features of synthetic and held-out slices (Heusel et al. 2017)",
            worse="higher",
            gate=GateRule("fid", True, "unlike real slices"),
        ),
        Measure(
            "kid",
            "KID",
            "kernel distance between the same features (Bińkowski et al. 2018)",
            worse="higher",
        ),
        Measure(
            "precision",
            "precision",
            "share of synthetic slices that lie among real ones (Kynkäänniemi et al. 2019)",
            worse="lower",
            gate=GateRule("precision", True, "too many slices lie where no real ones do"),
        ),
        Measure(
            "recall",
            "recall",
            "share of real slices that lie among synthetic ones (Kynkäänniemi et al. 2019)",
            worse="lower",
            gate=GateRule("recall", True, "too many real slices lie where no synthetic ones do"),
        ),
        Measure(
            "density",
            "density",
            "how densely real slices surround synthetic ones (Naeem et al. 2020)",
            worse="lower",
        ),
        Measure(
            "coverage",
            "coverage",
            "share of real slices with a synthetic one nearby (Naeem et al. 2020)",
            worse="lower",
        ),
        Measure(
            "detectability",
            "detectability",
            "AUC of a small classifier that learns to tell synthetic slices from encoded and decoded real ones; 0.5 if "
            "it cannot (Lopez-Paz & Oquab 2017)",
            worse="higher",
        ),
        Measure(
            "tissue_area",
            "areas of tissues",
            "difference of the mean areas of each class and level between label maps and real ones, as a share of the "
            "real areas",
            worse="higher",
        ),
        Measure(
            "tissue_ks",
            "areas of tissues, KS",
            "Kolmogorov-Smirnov distance between the same areas, the mean over classes and levels",
            worse="higher",
        ),
        Measure(
            "label_fit",
            "fit of label maps",
            "share of the variance of a slice's grey values that the classes of its label map explain",
            worse="lower",
        ),
        Measure(
            "suspected_copies",
            "suspected copies",
            "share of slices with a lower copy_ratio than 99 % of held-out slices",
            worse="higher",
            gate=GateRule("copies", False, "too many suspected copies of training slices"),
        ),
    )
}


OF_SLICES = tuple(key for key, measure in MEASURES.items() if measure.of_slices)


@dataclass(frozen=True)
class Score:
    """The value of a measure beside its reference: what real slices score in the place of synthetic ones."""

    value: Finite
    reference: Annotated[Finite, Field(alias="floor")]  # its key in `summary.json`

    @property
    def distance(self) -> float:
        """How far the value is from the reference; positive where it is higher."""
        return self.value - self.reference

    def to_json(self) -> dict[str, float]:
        """As `summary.json` has it, where the reference is called `floor`."""
        return {"value": self.value, "floor": self.reference, "distance": self.distance}


Scores = dict[str, Score]
"""By the measure's key."""


def beside(values: Mapping[str, float], references: Mapping[str, float]) -> Scores:
    """Each value beside its reference, in the order of the table; what is not finite on both sides is left out."""
    assert values.keys() <= MEASURES.keys(), f"not in the table of measures: {values.keys() - MEASURES.keys()}"
    return {
        key: Score(values[key], references[key])
        for key in MEASURES
        if math.isfinite(values.get(key, math.nan) + references.get(key, math.nan))
    }
