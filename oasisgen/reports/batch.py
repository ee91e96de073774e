"""The report of a batch: the verdict, its measures beside their references, and pictures to check them by."""

from typing import Any

import numpy as np
import pyarrow as pa

from oasisgen import storage
from oasisgen.data.feed import Feed, evenly_spaced
from oasisgen.data.labels import legend
from oasisgen.quality.measures import MEASURES, OF_SLICES
from oasisgen.quality.rows import BatchRows
from oasisgen.quality.summary import BatchSummary
from oasisgen.reports import figures
from oasisgen.reports.page import Picture, Section, render
from oasisgen.sampling.parts import read_images, read_label_maps
from oasisgen.sampling.request import BatchRequest

LEVELS_SHOWN = 32  # at most

STEPS = {"floor": "references"}  # fields of `seconds` in the summary -> their names on the page

LOADING = """import pandas as pd

slices = pd.read_parquet("{out}/summary")
print(slices.groupby("level")[["ssim_real", "ssim_train_max"]].mean())"""


def write_batch_report(
    out: str,
    summary: BatchSummary,
    rows: BatchRows,
    reference: pa.Table | None,
    train: Feed | None,
    image_size: tuple[int, int],
) -> None:
    """Write `<out>/report/index.html`.

    `rows` are those of the batch's summary, `reference` the measures of held-out slices, and `train` the training
    slices. The last two are None for a batch that was not measured.
    """
    gallery = Gallery(out, summary.request, train, image_size)
    sections = [measures_section(summary), levels_section(rows.firsts, gallery)]
    if reference is not None and rows.totals.rows:
        sections += [distributions_section(rows, reference), *extremes_sections(rows.lowest, gallery)]
    sections += [Section("Load the summary", code=LOADING.format(out=out)), provenance_section(summary)]
    page = render(
        title=f"{summary.slices} synthetic slices",
        subtitle=f"{out}, model {summary.request.model[:12]}",
        verdict={"word": summary.verdict, "reasons": summary.reasons},
        sections=sections,
    )
    storage.write_bytes(storage.join(out, "report", "index.html"), page)


def measures_section(summary: BatchSummary) -> Section:
    """Every score beside its reference."""
    network = "Inception v3 (weights {})" if summary.request.inception else "the one in the model bundle ({})"
    rows = [
        (
            MEASURES[key].label,
            f"{score.value:.4f}",
            f"{score.reference:.4f}",
            f"{score.distance:+.4f}",
            MEASURES[key].worse,
            MEASURES[key].sees,
        )
        for key, score in summary.scores.items()
    ]
    text = (
        "No score means much on its own. Compare it with its reference: what real slices score on the same measure. "
        f"FID, KID, MS-SSIM, precision, recall, density and coverage use {summary.measured_on} of the "
        f"{summary.slices} slices and equally many real ones. "
        f"Feature network: {network.format((summary.features or '')[:12])}."
    )
    return Section(
        "Measures",
        text if rows else "This batch was not measured.",
        columns=("measure", "synthetic", "reference", "distance", "worse is", "what it sees") if rows else (),
        table=tuple(rows),
    )


def levels_section(firsts: pa.Table, gallery: "Gallery") -> Section:
    """The first slices of each level, or of LEVELS_SHOWN evenly spaced ones."""
    levels = firsts["level"].to_numpy()
    there = np.unique(levels)
    shown = there[evenly_spaced(len(there), LEVELS_SHOWN)]
    which = "each level" if len(shown) == len(there) else f"{len(shown)} of the {len(there)} levels"
    beside = ", each beside its nearest training slice" if gallery.train else ""
    names = [of.name for of in gallery.request.label_classes]
    maps = f" The second picture of each has its label map over it: {legend(names)}." if names else ""
    text = f"The first sample ids of {which}, not hand-picked{beside}.{maps}"
    return Section(
        "Slices by level",
        text if len(firsts) else "The batch has no slices.",
        pictures=gallery.pictures(firsts.filter(np.isin(levels, shown))) if len(firsts) else (),
        filter="Level",
    )


def distributions_section(rows: BatchRows, reference: pa.Table) -> Section:
    """Histograms of what each slice scores."""
    titles = {key: MEASURES[key].label for key in OF_SLICES} | {"codes_in_use": "codes in use"}
    shown, count = len(rows.plotted), rows.totals.rows
    text = f"Of {shown} evenly spaced slices." if shown < count else ""
    return Section("Distributions over slices", text, figure=figures.distributions(rows.plotted, reference, titles))


def extremes_sections(lowest: dict[str, pa.Table], gallery: "Gallery") -> list[Section]:
    """The slices that are most similar to training slices, and those least similar to real ones."""
    return [
        Section(
            "Nearest to the training data",
            "The slices with the lowest copy ratio, each beside its nearest training slice, which is shown as it is "
            "stored: it may have matched when mirrored or shifted.",
            pictures=gallery.pictures(lowest["copy_ratio"]),
        ),
        Section(
            "Least like real slices",
            "The slices with the lowest SSIM to real slices, each beside its nearest training slice.",
            pictures=gallery.pictures(lowest["ssim_real"]),
        ),
    ]


def provenance_section(summary: BatchSummary) -> Section:
    """What made the batch, and how fast."""
    seconds = ", ".join(f"{STEPS.get(name, name)} {value}" for name, value in summary.seconds.to_json().items())
    speed = "" if summary.slices_per_second is None else f"; {summary.slices_per_second:.1f} slices/s"
    return Section(
        "Provenance",
        "To cite a slice, give the model, the base seed and the sample id: together they reproduce it.",
        table=(
            ("model", summary.request.model),
            ("base seed", summary.request.base_seed),
            ("slices", f"{summary.slices} of {summary.request.count}; {summary.rejected} rejected and replaced"),
            ("codes in use per slice", f"{summary.codes_in_use_mean or 0:.0f}"),
            ("compared with the real slices of", summary.data or "no data set"),
            (
                "compared with the released batch",
                summary.compared_with or "none of the same request and feature network",
            ),
            ("devices", ", ".join(summary.devices)),
            ("oasisgen", summary.version),
            ("finished", summary.finished),
            ("seconds", f"{seconds}{speed}"),
        ),
    )


class Gallery:
    """Pictures of a batch's slices, each beside the same with its label map, and beside its nearest training slice."""

    def __init__(self, out: str, request: BatchRequest, train: Feed | None, image_size: tuple[int, int]) -> None:
        self.out, self.request, self.train, self.image_size = out, request, train, image_size
        self.names = [train.column(name) for name in ("case", "level")] if train else []

    def pictures(self, slices: pa.Table) -> tuple[Picture, ...]:
        """A picture of each row of a batch's summary."""
        where = self.out, self.request.format, slices, self.image_size
        maps = read_label_maps(*where) if self.request.label_classes else [None] * len(slices)
        return tuple(map(self.picture, slices.to_pylist(), read_images(*where), maps))

    def picture(self, row: dict[str, Any], image: np.ndarray, labels: np.ndarray | None) -> Picture:
        """(H, W) uint8 of a row, perhaps with its label map -> its picture."""
        caption, images = f"id {row['id']}, level {row['level']}", [image]
        if self.train:
            nearest = row["nearest_case"], row["nearest_level"]
            cases, levels = self.names
            rows = np.flatnonzero((cases == nearest[0]) & (levels == nearest[1]))
            images.append(self.train.rows(rows[:1], "image")[0])
            caption += f": SSIM to real slices {row['ssim_real']:.3f}. Nearest: case {nearest[0]}, level {nearest[1]}, "
            caption += f"SSIM {row['ssim_train_max']:.3f}, copy ratio {row['copy_ratio']:.2f}"
        if labels is not None:
            images = [figures.overlay(image), figures.overlay(image, labels), *map(figures.overlay, images[1:])]
        return Picture(figures.embed(figures.montage([images])), caption, str(row["level"]))
