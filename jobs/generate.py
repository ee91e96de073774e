"""Generate synthetic slices from a trained model, with their summary and report."""

from dataclasses import dataclass

from oasisgen import cli, storage
from oasisgen.config import LEVELS, level_range
from oasisgen.progress import say


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

    def __post_init__(self) -> None:
        level_range(self.levels)
        if not 1 <= self.count <= 10**10:
            raise ValueError(f"count is {self.count}: must be from 1 to 10^10")
        if self.base_seed < 0:
            raise ValueError(f"base_seed is {self.base_seed}: must be at least 0")


def main() -> None:
    flags = cli.parse(cli.flags(Flags), "generate.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.sampling.batch import generate

        with cluster.connection():
            levels = level_range(flags.levels)
            summary = generate(flags.model, flags.out, flags.count, flags.base_seed, levels, flags.data)
        for name in ("ssim_real", "ssim_train_max"):
            value = summary[name]
            say("generate", f"{name:<14} {value['mean']:.4f}, floor {value['floor']:.4f}")
        out = storage.absolute(flags.out)
        say("generate", f"slices:  {storage.join(out, 'slices')}")
        say("generate", f"summary: {storage.join(out, 'summary')}")
        say("generate", f"report:  {storage.join(out, 'report', 'index.html')}")

    cli.run(job, "generate.py")


if __name__ == "__main__":
    main()
