"""The report of a utility probe: what a batch is worth to someone who trains a segmenter."""

from oasisgen import storage
from oasisgen.metrics.bootstrap import Interval
from oasisgen.quality.utility import ADDED, BOTH, FEW, FEW_BOTH, REAL, SYNTHETIC, Arm, Utility
from oasisgen.reports.page import Section, interval, render

NAMES: dict[Arm, str] = {
    REAL: "real pairs",
    SYNTHETIC: "synthetic pairs",
    BOTH: "real and synthetic pairs",
    FEW: "real pairs of {}",
    FEW_BOTH: "real pairs of {}, and synthetic pairs",
}


def number_of_subjects(count: int) -> str:
    """In words: `1 subject`, `10 subjects`."""
    return f"{count} subject{'' if count == 1 else 's'}"


def arm_name(arm: Arm, utility: Utility) -> str:
    """What an arm is trained on, in words."""
    return NAMES[arm].format(number_of_subjects(utility.subjects))


def about_few(utility: Utility) -> str:
    """What the label decoder knows, in the case of few labels."""
    if not utility.leaks:
        known = number_of_subjects(utility.label_subjects)
        return f"The label decoder, too, has learned from label maps of {known} alone."
    known = f"those of {utility.label_subjects}" if utility.label_subjects else "those of all"
    return (
        f"This is not a case of labels of {number_of_subjects(utility.subjects)} alone: the label decoder has learned "
        f"from {known} training subjects, so the synthetic pairs bring their labels in. Train a model with "
        f"--labels.subjects {utility.subjects} to leave them out."
    )


def write_utility_report(out: str, utility: Utility) -> None:
    """Write `<out>/report/index.html`."""
    page = render(
        title="Is the batch of use?",
        subtitle=f"{utility.batch}, probed on the real slices of {utility.data.uri}",
        verdict={"word": utility.verdict, "reasons": utility.reasons},
        sections=[utility_section(utility), arms_section(utility), added_section(utility), about_section(utility)],
    )
    storage.write_bytes(storage.join(out, "report", "index.html"), page)


def utility_section(utility: Utility) -> Section:
    """The utility of each class."""
    return Section(
        "Utility",
        "Dice on real held-out slices of a segmenter that was trained on synthetic pairs, over that of one that was "
        "trained on as many real pairs. At 1, the synthetic pairs are worth as much as real ones.",
        columns=("class", "utility (95 % interval over subjects)"),
        table=tuple((name, interval(ratio, 3)) for name, ratio in utility.utility.items()),
    )


def arms_section(utility: Utility) -> Section:
    """How well the segmenter of each arm finds each class."""
    rows = [
        (
            *(arm_name(arm, utility), of.real, of.synthetic, name),
            *(interval(score.dice, 3), _optional(score.hausdorff95), score.missed),
        )
        for arm, of in utility.arms.items()
        for name, score in of.classes.items()
    ]
    return Section(
        "Segmenters, on real held-out slices",
        f"Every segmenter is the same network, trained for {utility.steps} steps of {utility.batch_size} pairs from "
        "the same initial weights. One that learns from both kinds of pairs spends the first half of its steps on "
        "synthetic pairs and the other half on real ones. Dice is that of all slices of a subject together. The 95th "
        "percentile of the Hausdorff distance is that of a slice, where both label maps have the class; missed: slices "
        "where only one has it.",
        columns=(
            *("trained on", "real pairs", "synthetic pairs", "class", "Dice (95 % interval)"),
            *("Hausdorff distance, pixels (95 % interval)", "missed"),
        ),
        table=tuple(rows),
    )


def _optional(value: Interval | None) -> str:
    return interval(value, 2) if value else "none"


def added_section(utility: Utility) -> Section:
    """What synthetic pairs add to real ones."""
    rows = [
        (arm_name(ADDED[arm], utility), name, interval(gain, 3))
        for arm, gains in utility.added.items()
        for name, gain in gains.items()
    ]
    return Section(
        "What synthetic pairs add to real ones",
        "Difference of Dice when the synthetic pairs are added, in the same subjects."
        + (f" {about_few(utility)}" if FEW_BOTH in utility.added else ""),
        columns=("added to", "class", "difference of Dice (95 % interval)"),
        table=tuple(rows),
    )


def about_section(utility: Utility) -> Section:
    """What the figures depend on."""
    return Section(
        "Provenance",
        table=(
            ("batch", utility.batch),
            ("manifest of the batch, sha256", utility.manifest),
            ("real slices", f"{utility.data.uri}, fingerprint {utility.data.fingerprint}"),
            ("subjects whose label maps the label decoder has seen", utility.label_subjects or "all"),
            ("held-out slices", f"{utility.held_out_slices} of {number_of_subjects(utility.held_out_subjects)}"),
            ("seed", utility.seed),
            ("oasisgen", utility.version),
            ("finished", utility.finished),
            ("seconds", utility.seconds),
        ),
    )
