"""The report of a training run: what it learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oasisgen import __version__, storage
from oasisgen.config.folder import flatten
from oasisgen.config.train import PriorName
from oasisgen.data.feed import chunks
from oasisgen.data.labels import legend
from oasisgen.lock import Commit
from oasisgen.models.bundle import BundleSettings
from oasisgen.models.priors import PRIORS
from oasisgen.models.scores import ReconstructionScores
from oasisgen.quality.reconstruction import Evaluation
from oasisgen.reports import figures
from oasisgen.reports.page import Section, interval, render
from oasisgen.training.history import Epoch
from oasisgen.training.labels import dice_key
from oasisgen.training.shared_features import PretextEpoch

SHOWN = 8  # slices side by side
GENERATED = 4 * SHOWN  # synthetic slices

Pairs = list[tuple[np.ndarray, np.ndarray]]
"""Two slices each, (H, W) uint8."""

Histories = dict[str, Sequence[Epoch | PretextEpoch]]
"""The finished epochs of each stage."""


@dataclass(frozen=True)
class LabelResults:
    """What the label decoder learned."""

    classes: tuple[str, ...]  # their names
    history: Sequence[Epoch]
    dice: dict[str, float]  # of the classes, on held-out slices
    examples: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # held-out slice, its label map, and the decoded one


def write_run_report(
    out: str,
    settings: BundleSettings,
    model: str,
    evaluation: Evaluation,
    histories: Histories,
    pairs: Pairs,
    generated: Pairs,
    commit: Commit,
    labels: LabelResults | None = None,
) -> None:
    """Write `<out>/report/slices.png`, and by `commit` `<out>/report/index.html`.

    `model` is the digest of the bundle. `pairs` are (real, reconstructed) held-out slices, `generated` (synthetic, real
    of the same level). The rows of `slices.png` are real, reconstructed and synthetic slices. `labels`
    is None for a run without a label decoder.
    """
    configuration = flatten(settings.to_json())
    rows = [*zip(*pairs, strict=True), [synthetic for synthetic, _ in generated[:: len(generated) // SHOWN]]]
    storage.write_bytes(storage.join(out, "report", "slices.png"), figures.montage(rows))
    page = render(
        title="Training run",
        subtitle=f"model {model[:12]}, trained on {settings.data.uri}, oasisgen {__version__}",
        sections=[
            reconstruction_section(evaluation.scores, settings.vqvae.codebook_size),
            pairs_section(pairs),
            *training_sections(settings.prior, histories, evaluation.code_counts),
            *(labels_sections(labels) if labels else ()),
            generated_section(generated),
            Section("Configuration", table=tuple((name, str(value)) for name, value in configuration.items())),
        ],
    )
    commit(storage.join(out, "report", "index.html"), page)


def reconstruction_section(scores: ReconstructionScores, codebook_size: int) -> Section:
    """How well held-out slices are reconstructed, beside the baseline."""
    return Section(
        "Reconstruction",
        f"All {scores.slices} slices of the {scores.cases} cases in the validate split, in evaluation mode, as "
        "the 8-bit images that would be written. In brackets: 95 % interval, bootstrap over subjects.",
        columns=("measure", "this run", "the baseline's report"),
        table=(
            ("SSIM", interval(scores.ssim), "0.8462 (best epoch, one batch of 16 test slices)"),
            ("PSNR, dB", interval(scores.psnr_db, 2), ""),
            ("codes in use", f"{scores.codes_in_use} of {codebook_size}", ""),
            ("perplexity", f"{scores.perplexity:.0f}", ""),
        ),
    )


def pairs_section(pairs: Pairs) -> Section:
    """Real slices, their reconstructions, and the difference."""
    differences = [(128 + np.clip(b.astype(int) - a, -128, 127)).astype(np.uint8) for a, b in pairs]
    return Section(
        "Real, reconstructed, difference",
        "Held-out slices, evenly spaced over the split. Top row: real; middle: reconstructed; bottom: reconstructed "
        "minus real, where mid-grey means no difference.",
        figure=figures.embed(figures.montage([*zip(*pairs, strict=True), differences])),
        slices=True,
    )


def training_sections(prior: PriorName, histories: Histories, code_counts: np.ndarray) -> tuple[Section, ...]:
    """The curves of each stage, and how the codebook is used."""
    stage_1 = {
        "loss": ["reconstruction_loss", "ssim_loss", "quantizer_loss"],
        "SSIM, validate": ["ssim"],
        "codebook": ["codes_in_use", "perplexity"],
    }
    stage_2 = PRIORS[prior].panels | {"codes of generated maps": ["codes_in_use", "perplexity"]}
    features = {task: [f"{task}_loss"] for task in ("level", "damage", "anatomy")}
    return (
        Section("Stage 1: the VQ-VAE", figure=curves(histories["vqvae"], stage_1)),
        Section(
            "Codebook usage",
            "How often each code occurs in the code maps of the validate split.",
            figure=figures.code_usage(code_counts),
        ),
        Section(f"Stage 2: the {PRIORS[prior].label}", figure=curves(histories[prior], stage_2)),
        Section(
            "The feature network",
            "Trained once for all runs of the data set, on real slices only. It embeds slices for FID, KID, precision, "
            "recall, density and coverage.",
            figure=curves(histories["features"], features),
        ),
    )


def curves(history: Sequence[Epoch | PretextEpoch], panels: dict[str, list[str]]) -> str:
    """Curves of metrics over epochs; `panels` as in `figures.curves`."""
    return figures.curves([epoch.to_json() for epoch in history], panels)


def generated_section(generated: Pairs) -> Section:
    """Synthetic slices above real ones."""
    rows = [row for some in chunks(generated, SHOWN) for row in zip(*some, strict=True)]
    return Section(
        "Synthetic and real slices of the same levels",
        "Rows alternate: synthetic slices above real held-out slices of the same levels. The first sample ids of "
        "each level; none were hand-picked.",
        figure=figures.embed(figures.montage(rows)),
        slices=True,
    )


def labels_sections(labels: LabelResults) -> tuple[Section, ...]:
    """How well label maps are decoded from the codes of held-out slices."""
    panels = {"loss": ["cross_entropy", "dice_loss"], "Dice, validate": list(map(dice_key, labels.dice))}
    images, real, decoded = zip(*labels.examples, strict=True)
    rows = [[figures.overlay(image) for image in images]]
    rows += [list(map(figures.overlay, images, maps)) for maps in (real, decoded)]
    return (
        Section(
            "The label decoder",
            "Dice of each class over held-out slices taken together; the table has it after the last epoch.",
            columns=("class", "Dice"),
            table=tuple((name, f"{score:.3f}") for name, score in labels.dice.items()),
            figure=curves(labels.history, panels),
        ),
        Section(
            "Label maps, real and decoded",
            "Held-out slices, evenly spaced over those with a label map. Top row: real; middle: with its label map; "
            f"bottom: with the one that is decoded from its codes. Colors: {legend(labels.classes)}.",
            figure=figures.embed(figures.montage(rows)),
            slices=True,
        ),
    )
