"""Generate synthetic slices from a trained model, with their summary and report."""

from oasisgen import cli, storage
from oasisgen.config import GenerateConfig
from oasisgen.progress import say

RESULTS = ("slices", "summary", "report/index.html")


def main() -> None:
    config = cli.parse(cli.flags(GenerateConfig), "generate.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.sampling.batch import generate

        with cluster.connection():
            summary = generate(config)
        if summary is None:
            return
        for name, measure in summary["measures"].items():
            say("generate", f"{name:<16} {measure['value']:.4f}, floor {measure['floor']:.4f}")
        results = [storage.join(storage.absolute(config.out), name) for name in RESULTS]
        links = [storage.link(results[-1], config.link_hours)] if config.link_hours else []
        for uri in results + links:
            say("generate", uri)

    cli.run(job, "generate.py")


if __name__ == "__main__":
    main()
