"""The batches of one root beside each other: the last one that was released, and a page of all nights."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from oasisgen import documents, storage
from oasisgen.errors import InvalidFile
from oasisgen.evaluation import figures, report
from oasisgen.progress import say

FOLDER = "batches"  # <root>/batches/<name>: nothing is read or written beside a batch that lies elsewhere
MOST_WRITES = 10  # of the page, while more batches end
# What requests have in common whose measures can be compared.
SAME = ("count", "levels", "ids", "reject", "data_fingerprint", "inception")
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


def root_of(batch: str) -> str | None:
    """The folder of all nights, if the batch at `batch` lies in one."""
    folder, _, _ = batch.rpartition("/")
    return folder if folder.rpartition("/")[2] == FOLDER else None


def name_of(batch: str) -> str:
    """A batch's name: its path below the folder of all batches, or, outside of one, its whole address."""
    return batch.partition(f"/{FOLDER}/")[2] or batch


def read_nights(root: str) -> list[dict[str, Any]]:
    """What `summary.json` says of each batch that has a manifest, with its `name`, the oldest first.

    A batch whose summary is damaged or of another version is named and left out.
    """

    def read(name: str) -> dict[str, Any] | None:
        if not storage.exists(storage.join(root, name, "manifest.json")):
            return None
        try:
            return documents.read(storage.join(root, name, "summary.json"), documents.Summary) | {"name": name}
        except (FileNotFoundError, InvalidFile) as error:
            say("nights", f"{name} is left out: {error}")
            return None

    with ThreadPoolExecutor(16) as pool:
        nights = [night for night in pool.map(read, storage.list_folders(root)) if night]
    return sorted(nights, key=lambda night: (night["finished"], night["name"]))


def last_released(root: str, request: dict[str, Any], but: str) -> dict[str, Any] | None:
    """What the last released batch that was asked for and measured alike says; None if there is none `but` one."""
    alike = [
        night
        for night in read_nights(root)
        if night["name"] != but
        and night["verdict"] == "released"
        and all(night.get(name) == request[name] for name in SAME)
    ]
    return alike[-1] if alike else None


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
    nights = read_nights(root)
    for _ in range(MOST_WRITES):
        _write_page(page, nights)
        shown, nights = nights, read_nights(root)
        if nights == shown:
            return


def rows_of(nights: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of the table, and the points of the curves, of all nights."""
    rows, history = [], []
    for number, night in enumerate(nights, 1):
        values = {heading: night["measures"].get(name) for heading, name in COLUMNS.items()}
        seconds = night["seconds"]
        speed = report.speed(night)
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
    content = report.render(
        "nights.html",
        title=TITLE,
        subtitle="The newest first; in brackets what real slices score. Only a released batch is for use.",
        figure=figures.curves(history, panels, "night") if history else "",
        columns=[*ABOUT, *COLUMNS, *WORK],
        nights=rows[::-1],
    )
    storage.write_bytes(page, content)
