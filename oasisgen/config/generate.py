"""Every setting of generation, which `jobs/generate.py` turns into flags."""

from dataclasses import dataclass, field
from typing import Literal

from oasisgen.config.check import check, check_finite, check_least
from oasisgen.config.data import LEVELS
from oasisgen.config.ranges import number_ranges

MOST_IDS = 10**10  # sample ids are below it: a file's name has ten digits


Format = Literal["png", "parquet", "webdataset"]


Reject = Literal["none", "copies", "outliers", "both"]


Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class GateConfig:
    """How close a batch must come to its reference, what real slices score, to be released.

    The same tolerances apply to the last released batch of the same request, if there is one.
    """

    ssim_real: float = 0.02
    """Most by which ssim_real may differ."""
    ms_ssim: float = 0.03
    """Most by which MS-SSIM within a level may be higher: less variety."""
    fid: float = 2.0
    """FID may be at most this many times the reference's."""
    precision: float = 0.7
    """Least share of the reference's precision."""
    recall: float = 0.5
    """Least share of the reference's recall."""
    copies: float = 0.01
    """Most by which the share of suspected copies may be higher."""

    def __post_init__(self) -> None:
        check_finite(self, "gate.")
        check_least(self, "gate", 0, "ssim_real", "ms_ssim", "fid", "precision", "recall", "copies")


@dataclass(frozen=True)
class GenerateConfig:
    """Generate synthetic slices from a trained model, measure them, and say whether they may be released.

    `--verify <batch>` alone proves that a batch is complete and untouched. Exit status 3: quarantined.
    """

    model: str
    """URI of a run or of its model bundle."""
    out: str
    """URI of the batch, <root>/batches/<name>."""
    count: int = 1000
    """Slices; their sample ids are the first so many of the levels asked for."""
    levels: str = f"0-{LEVELS - 1}"
    """Levels to paint, in turn, like 10-20,25 (models that know levels). An id decides its level."""
    ids: str | None = None
    """Make just these sample ids, like 17,42,1000-1010, instead of a count of the levels."""
    base_seed: int | None = None
    """A slice is a pure function of model, base seed and sample id; by default the batch's name decides."""
    precision: Precision = "bfloat16"
    """bfloat16, where the device multiplies in it, is several times as fast; a device of another kind then makes the
    same head with other details. In float32 they differ in the last bit."""
    format: Format = "png"
    """A PNG per slice; or the PNGs of a part in one Parquet file or tar archive, cheaper where there are millions."""
    reject: Reject = "none"
    """Leave out slices that score below 99 % of held-out ones: as copies (copy_ratio), as outliers (ssim_real), or as
    either; the next ids take their place."""
    measure: bool = True
    """Compare with real slices; a batch that is not measured is not released."""
    part_size: int = 1000
    """Sample ids in a part, which is made, or made again, as a whole."""
    data: str | None = None
    """URI of the data set to measure against; by default the one the model was trained on."""
    gpus_per_sampler: float | None = None
    """GPUs for each sampler and feature extractor; by default one where the cluster has any. 0 works on CPUs."""
    inception: str | None = None
    """URI of torchvision's weights of Inception v3, whose features then tell fidelity instead of the run's own."""
    wait_minutes: float = 0.0
    """Minutes to wait for room on the cluster, which an autoscaler sees and starts nodes for; 0: some seconds."""
    dry_run: bool = False
    """Check storage, model, data set, room on the cluster and the batch's name, print the plan, and stop."""
    link_hours: float = 0.0
    """Print a link to the report too, which opens without credentials for so many hours (on S3); 0: none."""
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        check_finite(self)
        number_ranges("levels", self.levels, LEVELS)
        check("count", self.count, 1 <= self.count <= MOST_IDS, "from 1 to 10^10")
        if self.ids is not None:
            number_ranges("ids", self.ids, MOST_IDS)
            asked = self.count, self.levels, self.reject
            check("ids", self.ids, asked == (1000, f"0-{LEVELS - 1}", "none"), "without count, levels and reject")
        if self.base_seed is not None:
            check("base_seed", self.base_seed, 0 <= self.base_seed < 2**63, "from 0 to 2**63 - 1")
        gpus = self.gpus_per_sampler
        check("gpus_per_sampler", gpus, gpus is None or 0 <= gpus <= 1, "from 0 to 1")
        check("inception", self.inception, self.measure or not self.inception, "left out where nothing is measured")
        check("reject", self.reject, self.measure or self.reject == "none", "none where nothing is measured")
        check("part_size", self.part_size, 1 <= self.part_size <= 100_000, "from 1 to 100000")
        check("wait_minutes", self.wait_minutes, self.wait_minutes >= 0, "at least 0")
        check("link_hours", self.link_hours, 0 <= self.link_hours <= 168, "from 0 to 168, a week")
