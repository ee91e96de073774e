"""Measure how well a trained model reconstructs a split; or of what use a batch is to train a segmenter."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from oasisgen import cli, storage
from oasisgen.config.check import check, check_finite
from oasisgen.config.probe import ProbeConfig
from oasisgen.progress import say

if TYPE_CHECKING:
    from oasisgen.models.scores import ReconstructionScores
    from oasisgen.quality.utility import Utility

QUARANTINED = 3  # exit status


@dataclass(frozen=True)
class Flags:
    """Measure how well a trained model reconstructs every slice of a split.

    `--batch <batch>` instead of a model probes of what use a batch is to train a segmenter: see `--batch - --help`.
    """

    model: str
    """URI of a run or of its model bundle."""
    data: str
    """URI of a packed data set."""
    out: str
    """URI of the folder for evaluation.json and slices.parquet."""
    split: Literal["train", "validate", "test"] = "validate"
    """Split to evaluate. Choose models on `validate`; report `test` once."""
    gpus_per_worker: float | None = None
    """GPUs for each worker, from 0 to 1. Defaults to 1 if the cluster has GPUs; 0 uses CPUs."""
    wait_minutes: float = 0.0
    """Minutes to wait for free CPUs and GPUs, while an autoscaler may start nodes. 0 waits a few seconds."""

    def __post_init__(self) -> None:
        check_finite(self)
        gpus = self.gpus_per_worker
        check("gpus_per_worker", gpus, gpus is None or 0 <= gpus <= 1, "from 0 to 1")
        check("wait_minutes", self.wait_minutes, self.wait_minutes >= 0, "at least 0")


def lines(scores: "ReconstructionScores") -> list[str]:
    """What `evaluation.json` says, in words."""
    from oasisgen.reports.page import interval

    return [
        f"SSIM         {interval(scores.ssim)}",
        f"PSNR, dB     {interval(scores.psnr_db, 2)}",
        f"codes in use {scores.codes_in_use} ({scores.codes_in_use_percent:.1f} %)",
        f"perplexity   {scores.perplexity:.1f}",
    ]


def parse(arguments: list[str]) -> Flags | ProbeConfig:
    """A model and a data set, or `--batch` and how to probe it."""
    is_probe = any(argument.partition("=")[0] == "--batch" for argument in arguments)
    kind: type[Flags | ProbeConfig] = ProbeConfig if is_probe else Flags
    return cli.flags(kind)(arguments)


def utility_lines(utility: "Utility") -> list[str]:
    """What `utility.json` says, in words."""
    from oasisgen.quality.utility import FEW_BOTH
    from oasisgen.reports.page import interval
    from oasisgen.reports.utility import about_few, arm_name

    found = [f"utility for {name}: {interval(ratio, 3)}" for name, ratio in utility.utility.items()]
    for arm, added in utility.added.items():
        gains = ", ".join(f"{name} {interval(gain, 3)}" for name, gain in added.items())
        found.append(f"{arm_name(arm, utility)}: synthetic pairs add to Dice {gains}")
    return [*found, about_few(utility)] if FEW_BOTH in utility.added else found


def main() -> None:
    flags = cli.parse(parse, "evaluate.py")
    cli.run(lambda: probe_job(flags) if isinstance(flags, ProbeConfig) else evaluate_job(flags), "evaluate.py")


def evaluate_job(flags: Flags) -> None:
    # After the flags: torch and Ray take seconds to import.
    from oasisgen import cluster
    from oasisgen.data.slices import open_data_set
    from oasisgen.pipelines.evaluate import evaluate_bundle

    out = storage.absolute(flags.out)
    with cluster.connection():
        data = open_data_set(flags.data)
        scores = evaluate_bundle(flags.model, data, flags.split, out, flags.gpus_per_worker, flags.wait_minutes)
    say("evaluate", f"{flags.split}: {scores.slices} slices of {scores.cases} cases; 95 % intervals over subjects")
    for line in lines(scores):
        say("evaluate", line)
    say("evaluate", f"written to {out}")


def probe_job(config: ProbeConfig) -> None:
    from oasisgen import cluster
    from oasisgen.pipelines.probe import probe

    with cluster.connection():
        out, utility = probe(config)
    for line in (*utility_lines(utility), *utility.reasons, f"written to {out}", utility.verdict):
        say("probe", line)
    if utility.verdict != "released":
        raise SystemExit(QUARANTINED)


if __name__ == "__main__":
    main()
