"""The page of all batches of one root, with trends."""

import datetime
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from oasisgen import storage
from oasisgen.progress import say
from oasisgen.quality.history import FinishedBatch, read_batches
from oasisgen.quality.measures import MEASURES, Score
from oasisgen.reports import figures
from oasisgen.reports.page import render

MOST_WRITES = 10  # times that the page is written, as long as more batches finish

MOST_POINTS = 400  # on a curve: so many of the newest batches
DAYS = "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"

TITLE = "All batches"
OURS = f"<title>{TITLE}</title>".encode()

ABOUT = "batch", "verdict", "reasons for quarantine", "finished, UTC", "slices", "rejected"
JUDGED = {key: measure.label for key, measure in MEASURES.items() if measure.gate}
UTILITY = "utility"
WORK = "slices/s", "hours", "model", "feature network", "base seed"

TRENDS = {"fidelity": "fid", "variety": "ms_ssim", "copies": "suspected_copies"}  # title of a panel -> measure


def write_index(root: str, known: Iterable[FinishedBatch] = ()) -> None:
    """Write `<root>/index.html`: every batch in a table, newest first, with trends; `known` ones are not read again.

    A page under that name that this program did not write is left unchanged. Call it after the batch's manifest is
    written. Two batches that end together overwrite each other's page, so each writes it until no batch was added in
    the meantime.
    """
    page = storage.join(root, "index.html")
    with suppress(FileNotFoundError):
        if OURS not in storage.read_bytes(page):
            say("report", f"{page} was not written by oasisgen: the page of all batches is not written")
            return
    batches = read_batches(root, known)
    for _ in range(MOST_WRITES):
        storage.write_bytes(page, render_index(batches))
        shown, batches = batches, read_batches(root, batches)
        if batches == shown:
            return


def render_index(batches: list[FinishedBatch]) -> bytes:
    """The page of `batches`, in the order in which they were finished."""
    panels = {title: [JUDGED[key], f"{JUDGED[key]}, real"] for title, key in TRENDS.items()} | {"speed": ["slices/s"]}
    points = [trend_point(number, batch) for number, batch in enumerate(batches, 1)][-MOST_POINTS:]
    return render(
        "batches.html",
        title=TITLE,
        subtitle="Newest first. In brackets: the reference, what real slices score. FID, precision and recall are "
        "not comparable between feature networks. Utility, once a batch is probed: Dice of a segmenter trained on it "
        "over that of one trained on real slices, for the class where it is lowest. Use released batches only.",
        figure=figures.curves(points, panels, "batch") if points else "",
        trends="Trends" if len(points) == len(batches) else f"Trends of the last {len(points)} batches",
        columns=[*ABOUT, *JUDGED.values(), UTILITY, *WORK],
        batches=[table_row(batch) for batch in reversed(batches)],
    )


def table_row(batch: FinishedBatch) -> dict[str, Any]:
    """A batch's row of the table: the values of the first columns, and the `cells` of the others."""
    summary, scores = batch.summary, batch.summary.scores
    finished = summary.finished.replace("T", " ").partition("+")[0]
    with suppress(ValueError):  # the field is only known to be a text
        finished = f"{finished} {DAYS[datetime.date.fromisoformat(finished[:10]).weekday()]}"
    hours = sum(summary.seconds.to_json().values()) / 3600
    lowest = batch.utility.lowest if batch.utility else None
    cells = [
        *(finished, summary.slices, summary.rejected),
        *(f"{scores[key].value:.3f} ({scores[key].reference:.3f})" if key in scores else "" for key in JUDGED),
        f"{lowest:.3f} (1.000)" if lowest is not None else "",
        *("" if summary.slices_per_second is None else f"{summary.slices_per_second:.1f}", f"{hours:.2f}"),
        *(summary.request.model[:12], (summary.features or "")[:12], summary.request.base_seed),
    ]
    return {
        "name": batch.name,
        "day": finished[:10],
        "verdict": batch.verdict,
        "reasons": "; ".join(batch.reasons),
        "cells": cells,
    }


def trend_point(number: int, batch: FinishedBatch) -> dict[str, float]:
    """A batch's point on the curves."""
    speed = batch.summary.slices_per_second
    point = {"batch": number, "slices/s": math.nan if speed is None else speed}
    for key in TRENDS.values():
        score = batch.summary.scores.get(key, Score(math.nan, math.nan))
        point |= {JUDGED[key]: score.value, f"{JUDGED[key]}, real": score.reference}
    return point
