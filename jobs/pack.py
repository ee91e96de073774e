"""Pack brain scans into a data set of Parquet shards."""

from oasisgen import cli, storage
from oasisgen.config.pack import PackConfig
from oasisgen.progress import say


def main() -> None:
    flags = cli.parse(cli.flags(PackConfig), "pack.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.data.degenerate import lines
        from oasisgen.data.pack import pack

        if flags.preview:
            from oasisgen.reports.preview import write_preview  # it draws, so it needs torch and matplotlib

            say("pack", f"preview: {write_preview(flags)}")
            return

        with cluster.connection():
            description = pack(flags)
        if description is None:
            return
        for name, split in description.splits.items():
            say("pack", f"{name}: {split.slices} slices of {len(split.cases)} cases")
        for file in description.rejected:
            say("pack", f"rejected {file.file}: {file.reason}")
        for unused in description.unused:
            say("pack", unused.in_words("not used"))
        for converted in description.converted:
            say("pack", converted.in_words("converted"))
        for line in lines(description):
            say("pack", line)
        say("pack", f"data set: {storage.absolute(flags.out)}")

    cli.run(job, "pack.py")


if __name__ == "__main__":
    main()
