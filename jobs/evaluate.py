"""Measure how well a trained model reconstructs a split."""

from dataclasses import dataclass
from typing import Literal

from oasisgen import cli, storage
from oasisgen.progress import say


@dataclass(frozen=True)
class Flags:
    """Measure how well a trained model reconstructs a split, every slice of it."""

    model: str
    """URI of a run or of its model bundle."""
    data: str
    """URI of a packed data set."""
    out: str
    """URI of the folder for evaluation.json and slices.parquet."""
    split: Literal["train", "validate", "test"] = "validate"
    """The split; choose models by validate, report test once."""


def main() -> None:
    flags = cli.parse(cli.flags(Flags), "evaluate.py")

    def job() -> None:
        # After the flags: torch and Ray take seconds to import.
        from oasisgen import cluster
        from oasisgen.data.slices import open_data_set
        from oasisgen.evaluation.reconstruction import evaluate_bundle
        from oasisgen.evaluation.report import interval

        out = storage.absolute(flags.out)
        with cluster.connection():
            summary = evaluate_bundle(flags.model, open_data_set(flags.data), flags.split, out)
        say(
            "evaluate",
            f"{flags.split}: {summary['slices']} slices of {summary['cases']} cases; 95 % intervals over cases",
        )
        say("evaluate", f"SSIM         {interval(summary['ssim'])}")
        say("evaluate", f"PSNR, dB     {interval(summary['psnr_db'], 2)}")
        say("evaluate", f"codes in use {summary['codes_in_use']} ({summary['codes_in_use_percent']:.1f} %)")
        say("evaluate", f"perplexity   {summary['perplexity']:.1f}")
        say("evaluate", f"written to {out}")

    cli.run(job, "evaluate.py")


if __name__ == "__main__":
    main()
