"""Train a VQ-VAE on a packed data set, then a prior over its code maps."""

import tyro

from oasisgen import cli, storage
from oasisgen.config.presets import PRESETS
from oasisgen.config.renamed import require_new_names
from oasisgen.config.train import TrainConfig
from oasisgen.progress import say


def parse(arguments: list[str]) -> TrainConfig:
    """A preset and the flags that override it; `full` if none is named."""
    require_new_names(arguments)
    if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        arguments = ["full", *arguments]
    return tyro.extras.overridable_config_cli(PRESETS, description=__doc__, args=arguments)


def main() -> None:
    config = cli.parse(parse, "train.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.pipelines.train import train

        with cluster.connection():
            bundle = train(config)
        if bundle:
            say("train", f"model:  {bundle}")
            say("train", f"report: {storage.join(storage.absolute(config.out), 'report', 'index.html')}")

    cli.run(job, "train.py")


if __name__ == "__main__":
    main()
