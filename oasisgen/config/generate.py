"""Every setting of generation, which `jobs/generate.py` turns into flags."""

from dataclasses import dataclass, field
from typing import Literal

from oasisgen.config.check import check, check_finite, check_least
from oasisgen.config.data import MOST_LEVELS
from oasisgen.config.ranges import disjoint_ranges, number_ranges

MOST_IDS = 10**10  # sample ids are below it: a file's name has ten digits
Format = Literal["png", "parquet", "webdataset"]
Reject = Literal["none", "copies", "outliers", "both"]
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class GateConfig:
    """How close a batch must come to its reference, the scores of real slices, to be released.

    The same tolerances apply to the last released batch with the same count, levels, ids, `reject` and data set.
    """

    ssim_real: float = 0.02
    """Largest difference of ssim_real, either way."""
    ms_ssim: float = 0.03
    """Largest increase of MS-SSIM between slices of a level; higher means less variety."""
    fid: float = 2.0
    """FID may be at most this many times the reference's."""
    precision: float = 0.7
    """Precision must be at least this fraction of the reference's."""
    recall: float = 0.5
    """Recall must be at least this fraction of the reference's."""
    copies: float = 0.01
    """Largest increase of the share of suspected copies."""
    utility: float = 0.0
    """Once the batch is probed (jobs/evaluate.py --batch): a segmenter trained on it must reach at least this fraction
    of the Dice of one trained on real slices, for each class. 0 judges nothing."""

    def __post_init__(self) -> None:
        check_finite(self, "gate.")
        check_least(self, "gate", 0, "ssim_real", "ms_ssim", "fid", "precision", "recall", "copies", "utility")


@dataclass(frozen=True)
class GenerateConfig:
    """Generate synthetic slices from a trained model, measure them, and say whether they may be released.

    `--verify <batch>` alone checks that a batch is complete and unchanged. Exit status 3: quarantined.
    """

    model: str
    """URI of a run or of its model bundle."""
    out: str
    """URI of the batch, <root>/batches/<name>."""
    count: int = 1000
    """Number of slices, from 1 to 10^10: the first sample ids of the requested levels."""
    levels: str | None = None
    """Levels to generate, like 10-20,25, if the model is conditioned on the level; defaults to all levels that the
    training data has. An id determines its level."""
    ids: str | None = None
    """Generate exactly these sample ids, like 17,42,1000-1010; replaces --count, --levels and --reject."""
    base_seed: int | None = None
    """A slice is a pure function of model, base seed and sample id. From 0 to 2^63 - 1; by default derived from the
    batch's path below `batches`."""
    precision: Precision = "bfloat16"
    """`bfloat16` is several times faster on devices that support it, but other kinds of device then give the same
    anatomy with different details. With `float32` they differ in the last bit, which occasionally changes details."""
    format: Format = "png"
    """One PNG per slice, or the PNGs of a part in one Parquet file or tar archive: cheaper for millions of slices."""
    labels: bool = True
    """Also write the label map of each slice, if the model has a label decoder."""
    reject: Reject = "none"
    """Reject slices below the 1st percentile of held-out slices in copy_ratio (`copies`), ssim_real (`outliers`) or
    either (`both`); the next ids replace them."""
    measure: bool = True
    """Compare the batch with real slices. A batch that is not compared is not released."""
    part_size: int = 1000
    """Sample ids per part, the unit of work that is repeated if interrupted; from 1 to 100000."""
    data: str | None = None
    """URI of the data set to compare with; defaults to the one the model was trained on."""
    gpus_per_sampler: float | None = None
    """GPUs for each sampler and feature extractor, from 0 to 1. Defaults to 1 if the cluster has GPUs; 0 uses CPUs."""
    inception: str | None = None
    """URI of torchvision's Inception v3 weights; embeds slices with them instead of the model's feature network."""
    wait_minutes: float = 0.0
    """Minutes to wait for free CPUs and GPUs, while an autoscaler may start nodes. 0 waits a few seconds."""
    dry_run: bool = False
    """Check storage, model, data set, free CPUs and GPUs and the batch's name, print the plan, and stop."""
    link_hours: float = 0.0
    """On S3, also print a link to the report that works without credentials for this many hours, 0 (none) to 168."""
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        check_finite(self)
        if self.levels is not None:
            number_ranges("levels", self.levels, MOST_LEVELS)
        check("count", self.count, 1 <= self.count <= MOST_IDS, "from 1 to 10^10")
        if self.ids is not None:
            disjoint_ranges("ids", self.ids, MOST_IDS)
            asked = self.count, self.levels, self.reject
            check("ids", self.ids, asked == (1000, None, "none"), "without count, levels and reject")
        if self.base_seed is not None:
            check("base_seed", self.base_seed, 0 <= self.base_seed < 2**63, "from 0 to 2**63 - 1")
        gpus = self.gpus_per_sampler
        check("gpus_per_sampler", gpus, gpus is None or 0 <= gpus <= 1, "from 0 to 1")
        check("inception", self.inception, self.measure or not self.inception, "left out where nothing is measured")
        check("reject", self.reject, self.measure or self.reject == "none", "none where nothing is measured")
        check("part_size", self.part_size, 1 <= self.part_size <= 100_000, "from 1 to 100000")
        check("wait_minutes", self.wait_minutes, self.wait_minutes >= 0, "at least 0")
        check("link_hours", self.link_hours, 0 <= self.link_hours <= 168, "from 0 to 168, a week")
