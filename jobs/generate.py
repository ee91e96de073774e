"""Generate synthetic slices from a trained model, with their summary, report and verdict; or verify a batch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oasisgen import cli, storage
from oasisgen.config.generate import GenerateConfig
from oasisgen.progress import say
from oasisgen.quality.measures import MEASURES

if TYPE_CHECKING:
    from oasisgen.quality.summary import BatchSummary

RESULTS = ("slices", "summary", "report/index.html")
QUARANTINED = 3  # exit status


@dataclass(frozen=True)
class Verify:
    """Check that a batch is complete and unchanged."""

    verify: str
    """URI of the batch."""


def parse(arguments: list[str]) -> GenerateConfig | Verify:
    """`--verify <batch>` alone, or what to generate."""
    kind: type[GenerateConfig | Verify] = (
        Verify if any(argument.startswith("--verify") for argument in arguments) else GenerateConfig
    )
    return cli.flags(kind)(arguments)


def lines(summary: "BatchSummary") -> list[str]:
    """The scores of a batch, in words."""
    return [
        f"{MEASURES[key].label}: {score.value:.4f} (real slices: {score.reference:.4f})"
        for key, score in summary.scores.items()
    ]


def main() -> None:
    config = cli.parse(parse, "generate.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.pipelines.generate import generate
        from oasisgen.sampling.verify import verify

        with cluster.connection():
            if isinstance(config, Verify):
                manifest = verify(config.verify)
                slices = sum(part.slices for part in manifest.parts)
                say("verify", f"{slices} slices in {len(manifest.parts)} parts, all there and untouched")
                say("verify", manifest.verdict)
                return
            summary = generate(config)
        if summary is None:
            return
        for line in lines(summary):
            say("generate", line)
        results = [storage.join(storage.absolute(config.out), name) for name in RESULTS]
        links = [storage.link(results[-1], config.link_hours)] if config.link_hours else []
        for uri in results + links:
            say("generate", uri)
        for reason in summary.reasons:
            say("generate", reason)
        say("generate", summary.verdict)
        if summary.verdict != "released":
            raise SystemExit(QUARANTINED)

    cli.run(job, "generate.py")


if __name__ == "__main__":
    main()
