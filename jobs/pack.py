"""Pack raw OASIS folders into a data set of Parquet shards."""

from dataclasses import dataclass

from oasisgen import cli, storage
from oasisgen.progress import say


@dataclass(frozen=True)
class Flags:
    """Pack raw OASIS folders (train, validate, test) into a data set of Parquet shards."""

    source: str
    """URI of the folder that holds the split folders."""
    out: str
    """URI of the data set, <root>/datasets/<name>."""
    strict: bool = False
    """Fail if any file is rejected, instead of listing it in dataset.json."""
    dry_run: bool = False
    """Check storage, source folders and the data set's name, print the plan, and stop."""


def main() -> None:
    flags = cli.parse(cli.flags(Flags), "pack.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.data.degenerate import lines
        from oasisgen.data.pack import pack

        with cluster.connection():
            description = pack(flags.source, flags.out, flags.strict, flags.dry_run)
        if description is None:
            return
        for name, split in description.splits.items():
            say("pack", f"{name}: {split.slices} slices of {len(split.cases)} cases")
        for file in description.rejected:
            say("pack", f"rejected {file.file}: {file.reason}")
        for line in lines(description):
            say("pack", line)
        say("pack", f"data set: {storage.absolute(flags.out)}")

    cli.run(job, "pack.py")


if __name__ == "__main__":
    main()
