"""`utility.json`: of what use a batch is to train a segmenter, compared with real pairs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from oasisgen import documents, storage
from oasisgen.documents import Count
from oasisgen.errors import InvalidFile, StorageError, UserError
from oasisgen.metrics.bootstrap import Interval, mean_with_interval, ratio_with_interval
from oasisgen.metrics.segmentation import dice_by_subject
from oasisgen.models.scores import MeasuredData
from oasisgen.progress import say
from oasisgen.sampling import manifest as manifests
from oasisgen.sampling.manifest import Verdict

FILE = "utility.json"
FOLDER = "evaluations"  # <root>/evaluations/<name>: where the probe of <root>/batches/<name> is looked for

# The arms: what the segmenter is trained on. The last two are the case of few labels.
Arm = Literal["real", "synthetic", "both", "few", "few-both"]
REAL: Final = "real"
SYNTHETIC: Final = "synthetic"
BOTH: Final = "both"
FEW: Final = "few"
FEW_BOTH: Final = "few-both"
ExtendedArm = Literal["both", "few-both"]
ADDED: dict[ExtendedArm, Arm] = {BOTH: REAL, FEW_BOTH: FEW}  # arm with synthetic pairs -> the same without

SCORES = pa.schema(  # of an arm's segmenter: a row per slice and class
    [
        *(("case", pa.string()), ("subject", pa.string()), ("level", pa.int64()), ("class", pa.string())),
        *(("real", pa.int64()), ("found", pa.int64()), ("both", pa.int64())),  # pixels
        ("hausdorff95", pa.float64()),  # pixels; null where the real or the found label map lacks the class
    ]
)


@dataclass(frozen=True)
class ClassScore:
    """How well a segmenter finds a class in real held-out slices."""

    dice: Interval  # of a subject's slices together; mean over subjects
    hausdorff95: Interval | None  # pixels, over the slices where the real and the found label map have the class
    missed: Count  # slices where only one of them has it


@dataclass(frozen=True)
class ArmScores:
    """What a segmenter was trained on, and how well it finds each class."""

    real: Count  # pairs
    synthetic: Count  # pairs
    classes: dict[str, ClassScore]


@dataclass(frozen=True, kw_only=True)
class Utility:
    """What `utility.json` says."""

    verdict: Verdict
    reasons: tuple[str, ...]
    batch: str
    manifest: str  # sha256 of the batch's manifest: the probe is of this batch, and no other of its name
    data: MeasuredData
    subjects: Count  # of the case of few labels; 0: it was left out
    label_subjects: Count = 0  # whose label maps the label decoder has learned from; 0: all of its data set
    held_out_slices: Count
    held_out_subjects: Count
    steps: Count  # of each arm
    batch_size: Count
    seed: Count
    utility: dict[str, Interval]  # class -> Dice when trained on synthetic pairs / Dice when trained on real pairs
    added: dict[ExtendedArm, dict[str, Interval]]  # arm -> class -> what synthetic pairs add to its Dice
    arms: dict[Arm, ArmScores]
    version: str
    finished: str
    seconds: Count

    @property
    def leaks(self) -> bool:
        """Whether the label decoder knows label maps of other subjects than the real pairs of the case of few labels
        have: then the synthetic pairs bring their labels in.
        """
        return bool(self.subjects) and not 0 < self.label_subjects <= self.subjects

    @property
    def lowest(self) -> float | None:
        """The utility of the class where it is lowest; None if no class could be measured."""
        return min((ratio.mean for ratio in self.utility.values()), default=None)


def class_scores(scores: pa.Table) -> dict[str, ClassScore]:
    """How well each class is found, from an arm's SCORES; a class that no slice has is left out."""
    found = {}
    for name, dice in dice_of_subjects(scores).items():
        rows = scores.filter(pc.equal(scores["class"], name))
        if not np.isfinite(dice).any():
            continue
        near = rows.filter(pc.is_valid(rows["hausdorff95"]))
        one = (rows["real"].to_numpy() > 0) != (rows["found"].to_numpy() > 0)
        kept = dice[np.isfinite(dice)]
        found[name] = ClassScore(
            mean_with_interval(kept, np.arange(len(kept))),
            mean_with_interval(near["hausdorff95"].to_numpy(), near["subject"].to_numpy()) if len(near) else None,
            int(one.sum()),
        )
    return found


def dice_of_subjects(scores: pa.Table) -> dict[str, np.ndarray]:
    """Class -> Dice of each subject (S,), in the order of their names; NaN where there is nothing to find or found."""
    of_classes = {name: scores.filter(pc.equal(scores["class"], name)) for name in scores["class"].unique().to_pylist()}
    columns = ("real", "found", "both", "subject")
    return {name: dice_by_subject(*(rows[one].to_numpy() for one in columns)) for name, rows in of_classes.items()}


def utility_of(real: pa.Table, synthetic: pa.Table) -> dict[str, Interval]:
    """Class -> its Dice when trained on synthetic pairs, over that when trained on real pairs, from their SCORES.

    A class that no scored slice has is left out. Raises UserError if the segmenter that was trained on real pairs never
    finds one that is there: then nothing can be said.
    """
    ratios, there = {}, set(real.filter(pc.greater(real["real"], 0))["class"].to_pylist())
    for name, (ours, theirs) in _of_same_subjects(synthetic, real).items():
        if name not in there:
            continue
        if not theirs.sum() > 0:
            raise UserError(
                f"even the segmenter that was trained on real pairs finds no {name}: train longer "
                "(--segmenter.epochs), or on more (--pairs)"
            )
        ratios[name] = ratio_with_interval(ours, theirs)
    return ratios


def added_by_synthetic(with_them: pa.Table, without: pa.Table) -> dict[str, Interval]:
    """Class -> difference of its Dice when synthetic pairs are added, from the SCORES of both arms."""
    pairs = _of_same_subjects(with_them, without)
    return {name: mean_with_interval(a - b, np.arange(len(a))) for name, (a, b) in pairs.items()}


def _of_same_subjects(a: pa.Table, b: pa.Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Class -> Dice in `a` and in `b` of the subjects who have one in both."""
    ours, theirs = dice_of_subjects(a), dice_of_subjects(b)
    known = {name: np.isfinite(ours[name]) & np.isfinite(theirs[name]) for name in ours}
    return {name: (ours[name][those], theirs[name][those]) for name, those in known.items() if those.any()}


def judge_utility(utility: Mapping[str, Interval], least: float, classes: Iterable[str]) -> list[str]:
    """Why a batch may not be released, a line for each of `classes` whose utility is below `least` or is not known; 0
    judges none.
    """
    unknown = [name for name in classes if name not in utility] if least else []
    return [
        *(
            f"of little use to train a segmenter: utility for {name} is {ratio.mean:.3f}, must be at least {least:.3f}"
            for name, ratio in utility.items()
            if ratio.mean < least
        ),
        *(
            f"utility for {name} could not be measured: no held-out slice that was scored has it (--validate-slices 0 "
            "scores all)"
            for name in unknown
        ),
    ]


def read_utility(out: str) -> Utility:
    """The probe at `out`. Raises FileNotFoundError, and InvalidFile where it is damaged."""
    return documents.read(storage.join(out, FILE), Utility)


def evaluation_of(batch: str) -> str | None:
    """Where the probe of a batch belongs, <root>/evaluations/<name>; None for one that is not <root>/batches/<name>."""
    folder, _, name = batch.rpartition("/")
    root, _, batches = folder.rpartition("/")
    if batches != "batches" or root.endswith(":/"):  # a bucket of that name has nothing above it
        return None
    return f"{root}/{FOLDER}/{name}"


def find_utility(batch: str) -> Utility | None:
    """The probe of a finished batch, if there is one of exactly this batch; one that cannot be read is named."""
    out = evaluation_of(batch)
    try:
        found = read_utility(out) if out else None
        return found if found and found.manifest == manifests.digest(batch) else None
    except FileNotFoundError:
        return None
    except (InvalidFile, StorageError) as error:
        say("batches", f"the utility probe of {batch} is left out: {error}")
        return None
