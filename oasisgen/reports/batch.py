"""The report of a batch: the verdict, numbers beside their floor, and pictures to check them by."""

from typing import Any

import numpy as np
import pyarrow as pa

from oasisgen import storage
from oasisgen.config.generate import Format
from oasisgen.data.feed import Feed
from oasisgen.quality.measures import MEASURES, OF_SLICES, read_scores
from oasisgen.reports import figures
from oasisgen.reports.page import Picture, Section, render, slices_per_second
from oasisgen.sampling.parts import read_images

PER_LEVEL, WORST = 2, 10


LOADING = """import pandas as pd

slices = pd.read_parquet("{out}/summary")
print(slices.groupby("level")[["ssim_real", "ssim_train_max"]].mean())"""


def write_batch_report(
    out: str, summary: dict[str, Any], slices: pa.Table, floor: pa.Table | None, train: Feed | None
) -> None:
    """`<out>/report/index.html`. `slices` are the batch's summary; without `floor` and `train` it was not measured."""
    pictures = Pictures(out, summary["format"], train)
    seconds = summary["seconds"]
    by_level = np.argsort(slices["level"].to_numpy(), kind="stable")
    levels = slices["level"].to_numpy()[by_level]
    some = [by_level[levels == level][:PER_LEVEL] for level in np.unique(levels)]
    sections = [
        Section(
            "In numbers",
            "No measure is to be read alone: what counts is how close it comes to the floor, the same measure of real "
            "slices. Features are those of the run's own network. Fidelity and variety are measured on "
            f"{summary['measured_on']} of {summary['slices']} slices, beside as many real ones.",
            columns=("measure", "synthetic", "reference", "distance", "worse", "what it sees"),
            table=tuple(
                (
                    MEASURES[key].label,
                    f"{score.value:.4f}",
                    f"{score.reference:.4f}",
                    f"{score.distance:+.4f}",
                    MEASURES[key].worse,
                    MEASURES[key].sees,
                )
                for key, score in read_scores(summary["measures"]).items()
            ),
        ),
        Section(
            "Slices, by level",
            "The first sample ids of each level, not chosen"
            + (", each beside its nearest training slice." if train else "."),
            pictures=pictures.of(slices.take(np.concatenate(some)) if some else slices),
            filter="Level",
        ),
    ]
    if floor and len(slices):
        shown = {name: name for name in (*OF_SLICES, "codes_in_use")}
        lowest = {name: pa.compute.sort_indices(slices, [(name, "ascending")])[:WORST] for name in OF_SLICES}
        sections += [
            Section("Distributions", figure=figures.distributions(slices, floor, shown)),
            Section(
                "Nearest to the training data",
                "The slices with the lowest copy_ratio, each beside its nearest training slice, which is the best by "
                "SSIM of those nearest as thumbnails, perhaps mirrored or of a neighbouring level.",
                pictures=pictures.of(slices.take(lowest["copy_ratio"])),
            ),
            Section(
                "Least like real ones",
                "The slices with the lowest ssim_real, each beside its nearest training slice.",
                pictures=pictures.of(slices.take(lowest["ssim_real"])),
            ),
        ]
    sections += [
        Section("Load it", code=LOADING.format(out=out)),
        Section(
            "Provenance",
            "Cite a slice by model, base seed and id: together they make the same slice again.",
            table=(
                ("model", summary["model"]),
                ("base seed", summary["base_seed"]),
                ("slices", f"{summary['slices']} of {summary['count']}, {summary['rejected']} refused and replaced"),
                ("codes in use per slice", f"{summary['codes_in_use_mean'] or 0:.0f}"),
                ("measured against", summary["data"] or "nothing"),
                ("compared with", summary["compared_with"] or "no released batch of the same request"),
                ("devices", ", ".join(summary["devices"])),
                ("oasisgen", summary["version"]),
                ("finished", summary["finished"]),
                (
                    "seconds",
                    ", ".join(f"{name} {value}" for name, value in seconds.items())
                    + f"; {slices_per_second(summary):.1f} slices/s",
                ),
            ),
        ),
    ]
    page = render(
        title=f"{summary['slices']} synthetic slices",
        subtitle=f"{out}, model {summary['model'][:12]}",
        verdict={"word": summary["verdict"], "reasons": summary["reasons"]},
        sections=sections,
    )
    storage.write_bytes(storage.join(out, "report", "index.html"), page)


class Pictures:
    """Slices of a batch, beside their nearest training slices, if there are any."""

    def __init__(self, out: str, kind: Format, train: Feed | None) -> None:
        self.out, self.kind, self.train = out, kind, train
        blocks = train.blocks if train else []
        names = (
            (case, int(level)) for block in blocks for case, level in zip(block["case"], block["level"], strict=True)
        )
        self.rows = {name: row for row, name in enumerate(names)}

    def of(self, slices: pa.Table) -> tuple[Picture, ...]:
        """A picture of each row of a summary."""
        images = read_images(self.out, self.kind, slices)
        return tuple(self.picture(row, image) for row, image in zip(slices.to_pylist(), images, strict=True))

    def picture(self, row: dict[str, Any], image: np.ndarray) -> Picture:
        """(256, 256) uint8 of a row -> its picture."""
        caption, images = f"id {row['id']}, level {row['level']}", [image]
        if self.train:
            nearest = row["nearest_case"], row["nearest_level"]
            images.append(self.train.rows(np.array([self.rows[nearest]]), "image")[0])
            caption += f": ssim_real {row['ssim_real']:.3f}; case {nearest[0]}, level {nearest[1]}: "
            caption += f"SSIM {row['ssim_train_max']:.3f}, copy_ratio {row['copy_ratio']:.2f}"
        return Picture(figures.embed(figures.montage([images])), caption, str(row["level"]))
