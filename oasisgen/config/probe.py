"""Every setting of the utility probe, which `jobs/evaluate.py --batch` turns into flags."""

from dataclasses import dataclass, field

from oasisgen.config.check import check, check_finite
from oasisgen.config.segmenter import SegmenterConfig


@dataclass(frozen=True)
class ProbeConfig:
    """Probe the utility of a batch: train a small segmenter on real pairs of slice and label map, on the batch's, and
    on both, and compare how well each segments real held-out slices. Exit status 3: below --gate.utility of the batch.
    """

    batch: str
    """URI of a finished batch with label maps."""
    out: str | None = None
    """URI of the folder for utility.json and the report. Defaults to <root>/evaluations/<name> for a batch at
    <root>/batches/<name>: there the page of all batches finds it."""
    data: str | None = None
    """URI of the data set with the real pairs; defaults to the one that the batch was compared with."""
    pairs: int = 2048
    """Real pairs, and synthetic pairs, to train on; fewer if there are fewer."""
    subjects: int | None = None
    """The case of few labels: real pairs of this many subjects only. 0 leaves it out. Defaults to the --labels.subjects
    that the batch's model was trained with, or to 10 if it has learned from all label maps."""
    validate_slices: int = 640
    """Slices of the validate split to score on, drawn at random. 0 scores all of them."""
    quarantined: bool = False
    """Also probe a batch that is quarantined."""
    seed: int = 0
    """Seed of the pairs that are drawn, the initial weights and the order of batches, from 0 to 2^32 - 1."""
    workers: int = 1
    """Training processes (DDP ranks)."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: float = 0.0
    """GPUs for each worker: a whole number, or a fraction of one for a single worker. 0 uses CPUs."""
    wait_minutes: float = 0.0
    """Minutes to wait for free CPUs and GPUs, while an autoscaler may start nodes. 0 waits a few seconds."""
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)

    def __post_init__(self) -> None:
        check_finite(self)
        batch_size = self.segmenter.batch_size
        check("pairs", self.pairs, self.pairs >= batch_size, f"at least segmenter.batch_size ({batch_size})")
        check("subjects", self.subjects, self.subjects is None or self.subjects >= 0, "at least 0")
        check("validate_slices", self.validate_slices, self.validate_slices >= 0, "at least 0")
        check("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        check("workers", self.workers, self.workers >= 1, "at least 1")
        fits = batch_size % self.workers == 0
        check("segmenter.batch_size", batch_size, fits, f"a multiple of workers ({self.workers})")
        check("cpus_per_worker", self.cpus_per_worker, self.cpus_per_worker > 0, "above 0")
        gpus = self.gpus_per_worker
        fits = gpus >= 0 and (gpus % 1 == 0 or (gpus < 1 and self.workers == 1))  # NCCL has one rank on a GPU
        check("gpus_per_worker", gpus, fits, "a whole number, or below 1 for a single worker")
        check("wait_minutes", self.wait_minutes, self.wait_minutes >= 0, "at least 0")
