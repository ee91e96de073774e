"""The page of all batches of one root, with trends."""

from contextlib import suppress
from typing import Any

from oasisgen import storage
from oasisgen.progress import say
from oasisgen.quality.history import read_batches
from oasisgen.reports import figures
from oasisgen.reports.page import render, slices_per_second

MOST_WRITES = 10  # of the page, while more batches end


ABOUT = "batch", "verdict", "why quarantined", "finished, UTC", "slices", "refused"


WORK = "slices/s", "hours", "model", "base seed"


TITLE = "All batches"


OURS = f"<title>{TITLE}</title>".encode()


COLUMNS = {  # heading -> measure
    "FID": "fid",
    "MS-SSIM": "ms_ssim",
    "ssim_real": "ssim_real",
    "precision": "precision",
    "recall": "recall",
    "suspected copies": "suspected_copies",
}


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
        values = {heading: night["measures"].get(name) for heading, name in COLUMNS.items()}
        seconds = night["seconds"]
        speed = slices_per_second(night)
        cells = [f"{each['value']:.3f} ({each['floor']:.3f})" if each else "" for each in values.values()]
        about = [night["finished"].replace("T", " ").partition("+")[0], night["slices"], night["rejected"]]
        work = [f"{speed:.1f}", f"{sum(seconds.values()) / 3600:.2f}", night["model"][:12], night["base_seed"]]
        rows.append({**night, "cells": about + cells + work, "reasons": "; ".join(night["reasons"])})
        line = {"night": number, "slices/s": speed}
        line |= {heading: each["value"] if each else float("nan") for heading, each in values.items()}
        line |= {f"{heading}, real": each["floor"] if each else float("nan") for heading, each in values.items()}
        history.append(line)
    return rows, history


def _write_page(page: str, nights: list[dict[str, Any]]) -> None:
    rows, history = rows_of(nights)
    panels = {
        "quality": ["FID", "FID, real"],
        "variety": ["MS-SSIM", "MS-SSIM, real"],
        "copies": ["suspected copies", "suspected copies, real"],
        "speed": ["slices/s"],
    }
    content = render(
        "nights.html",
        title=TITLE,
        subtitle="The newest first; in brackets what real slices score. Only a released batch is for use.",
        figure=figures.curves(history, panels, "night") if history else "",
        columns=[*ABOUT, *COLUMNS, *WORK],
        nights=rows[::-1],
    )
    storage.write_bytes(page, content)
