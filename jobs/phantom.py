"""Write the embedded data set: virtual subjects in the layout of OASIS."""

from dataclasses import dataclass

from oasisgen import cli, storage
from oasisgen.config.check import check
from oasisgen.config.data import OASIS, Shape
from oasisgen.progress import say


@dataclass(frozen=True)
class Flags:
    """Write a data set of virtual subjects, random deformations of the MNI152 template, in the layout of OASIS."""

    out: str
    """URI of the folder for the split folders."""
    train: int = 48
    """Subjects in the train split."""
    validate: int = 6
    """Subjects in the validate split."""
    test: int = 2
    """Subjects in the test split."""
    size: tuple[int, int] = OASIS.image_size
    """Height and width of the slices in pixels, multiples of 32 from 64 to 512."""
    levels: int = OASIS.levels
    """Slices of each subject, from 1 to 512."""
    seed: int = 0
    """The same seed gives the same subjects, bit for bit."""

    def __post_init__(self) -> None:
        check("train", self.train, self.train >= 1, "at least 1")
        for name in ("validate", "test", "seed"):
            check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        Shape(*self.size, self.levels)  # raises for one that cannot be


def main() -> None:
    flags = cli.parse(cli.flags(Flags), "phantom.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.data.phantom import write_phantoms

        with cluster.connection():
            splits = {"train": flags.train, "validate": flags.validate, "test": flags.test}
            write_phantoms(flags.out, splits, flags.seed, Shape(*flags.size, flags.levels))
        say("phantom", f"raw folders: {storage.absolute(flags.out)}")

    cli.run(job, "phantom.py")


if __name__ == "__main__":
    main()
