"""Generate synthetic slices from a trained model, with their summary and report."""

from dataclasses import dataclass

from oasisgen import cli, storage
from oasisgen.config import LEVELS, check, level_range
from oasisgen.progress import say

RESULTS = ("slices",), ("summary",), ("report", "index.html")


@dataclass(frozen=True)
class Flags:
    """Generate synthetic slices from a trained model, with their summary and report."""

    model: str
    """URI of a run or of its model bundle."""
    out: str
    """URI of the batch, <root>/batches/<name>."""
    count: int = 1000
    """Slices; their sample ids are 0 … count-1."""
    base_seed: int = 0
    """A slice is a pure function of model, base seed, sample id and levels."""
    levels: str = f"0-{LEVELS - 1}"
    """Levels to paint, in turn, like 10-20,25 (models that know levels)."""
    data: str | None = None
    """URI of the data set to measure against; by default the one the model was trained on."""
    dry_run: bool = False
    """Check storage, model, data set, room on the cluster and the batch's name, print the plan, and stop."""
    link_hours: float = 0.0
    """Print a link to the report too, which opens without credentials for so many hours (on S3); 0: none."""

    def __post_init__(self) -> None:
        level_range(self.levels)
        check("count", self.count, 1 <= self.count <= 10**10, "from 1 to 10^10")
        check("base_seed", self.base_seed, self.base_seed >= 0, "at least 0")
        check("link_hours", self.link_hours, 0 <= self.link_hours <= 168, "from 0 to 168, a week")


def main() -> None:
    flags = cli.parse(cli.flags(Flags), "generate.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.sampling.batch import generate

        with cluster.connection():
            levels = level_range(flags.levels)
            summary = generate(flags.model, flags.out, flags.count, flags.base_seed, levels, flags.data, flags.dry_run)
        if summary is None:
            return
        for name in ("ssim_real", "ssim_train_max"):
            say("generate", f"{name:<14} {summary[name]['mean']:.4f}, floor {summary[name]['floor']:.4f}")
        results = [storage.join(storage.absolute(flags.out), *path) for path in RESULTS]
        links = [storage.link(results[-1], flags.link_hours)] if flags.link_hours else []
        for uri in results + links:
            say("generate", uri)

    cli.run(job, "generate.py")


if __name__ == "__main__":
    main()
