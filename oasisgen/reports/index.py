"""The page of all batches of one root, with trends."""

import math
from contextlib import suppress
from typing import Any

from oasisgen import storage
from oasisgen.progress import say
from oasisgen.quality.history import read_batches
from oasisgen.quality.measures import MEASURES, read_scores
from oasisgen.reports import figures
from oasisgen.reports.page import render, slices_per_second

MOST_WRITES = 10  # of the page, while more batches end


ABOUT = "batch", "verdict", "why quarantined", "finished, UTC", "slices", "refused"


WORK = "slices/s", "hours", "model", "base seed"


TITLE = "All batches"


OURS = f"<title>{TITLE}</title>".encode()


JUDGED = {key: measure.label for key, measure in MEASURES.items() if measure.gate}


def write_index(root: str) -> None:
    """`<root>/index.html`: every batch in a table, the newest first, with trends.

    A page of somebody else's under that name stays as it is. A batch calls this once its manifest is written. Two that
    end together overwrite each other's page, so each writes it until no batch has been added in the meantime.
    """
    page = storage.join(root, "index.html")
    with suppress(FileNotFoundError):
        if OURS not in storage.read_bytes(page):
            say("report", f"{page} is not ours: the page of all batches is not written")
            return
    nights = read_batches(root)
    for _ in range(MOST_WRITES):
        _write_page(page, nights)
        shown, nights = nights, read_batches(root)
        if nights == shown:
            return


def rows_of(nights: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of the table, and the points of the curves, of all nights."""
    rows, history = [], []
    for number, night in enumerate(nights, 1):
        scores = read_scores(night["measures"])
        seconds = night["seconds"]
        speed = slices_per_second(night)
        found = [scores.get(key) for key in JUDGED]
        cells = [f"{score.value:.3f} ({score.reference:.3f})" if score else "" for score in found]
        about = [night["finished"].replace("T", " ").partition("+")[0], night["slices"], night["rejected"]]
        work = [f"{speed:.1f}", f"{sum(seconds.values()) / 3600:.2f}", night["model"][:12], night["base_seed"]]
        rows.append({**night, "cells": about + cells + work, "reasons": "; ".join(night["reasons"])})
        line = {"night": number, "slices/s": speed}
        for label, score in zip(JUDGED.values(), found, strict=True):
            line |= {label: score.value if score else math.nan}
            line |= {f"{label}, real": score.reference if score else math.nan}
        history.append(line)
    return rows, history


def _write_page(page: str, nights: list[dict[str, Any]]) -> None:
    rows, history = rows_of(nights)
    panels = {
        title: [MEASURES[key].label, f"{MEASURES[key].label}, real"]
        for title, key in {"fidelity": "fid", "variety": "ms_ssim", "copies": "suspected_copies"}.items()
    }
    panels["speed"] = ["slices/s"]
    content = render(
        "nights.html",
        title=TITLE,
        subtitle="The newest first; in brackets what real slices score. Only a released batch is for use.",
        figure=figures.curves(history, panels, "night") if history else "",
        columns=[*ABOUT, *JUDGED.values(), *WORK],
        nights=rows[::-1],
    )
    storage.write_bytes(page, content)
