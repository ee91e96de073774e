"""Figures for the reports: charts as SVG, montages as PNG, in data URIs, since a report is a single file."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from oasisgen.data.labels import COLORS

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "oasisgen",
    "text.parse_math": False,  # names of classes and cases may have a $
}
POWERS: Any = STYLE | {"text.parse_math": True}  # for the numbers of a logarithmic axis

GAP = 4  # pixels between the slices of a montage
OPACITY = 0.45  # of a label map over its slice
REAL, SYNTHETIC = "#8a8f98", "#b5472f"

MOST_MARKED = 100  # points of a curve that are marked; more would hide it


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def curves(history: list[dict[str, Any]], panels: dict[str, list[str]], over: str = "epoch") -> str:
    """Curves of metrics over epochs: a panel for each title in `panels`, a line for each metric listed under it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * len(panels), 2.5), layout="constrained")
        points = {"marker": "."} if len(history) <= MOST_MARKED else {"linewidth": 0.6}
        for axis, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for name in names:
                axis.plot([line[over] for line in history], [line[name] for line in history], label=name, **points)
            axis.set(title=title, xlabel=over)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
            axis.legend(framealpha=0.8, edgecolor="none")
        return _svg(figure)


def distributions(synthetic: pa.Table, real: pa.Table, names: dict[str, str]) -> str:
    """Histograms of measures of synthetic slices over those of held-out real ones, where those have them; `names`
    maps measure -> title."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.3 * len(names), 2.6), layout="constrained")
        for axis, (name, title) in zip(figure.subplots(1, len(names), squeeze=False)[0], names.items(), strict=True):
            sets = {"synthetic": (synthetic, SYNTHETIC), "held-out real (reference)": (real, REAL)}
            values = {label: t[name].to_numpy() for label, (t, _) in sets.items() if name in t.column_names}
            everything = np.concatenate(list(values.values()))
            bins = np.linspace(everything.min(), everything.max() + 1e-6, 30)
            for label, its in values.items():
                axis.hist(its, bins, density=True, alpha=0.6, color=sets[label][1], label=label)
            axis.set(title=title, yticks=[])
        figure.axes[0].legend(frameon=False)
        return _svg(figure)


def code_usage(counts: np.ndarray) -> str:
    """How often each code is used, most used first, from how often each occurs (K,)."""
    with mpl.rc_context(POWERS):
        figure = Figure(figsize=(6.5, 2.2), layout="constrained")
        axis = figure.subplots()
        share = np.sort(counts.astype(float))[::-1] / max(1, counts.sum())
        axis.bar(np.arange(len(share)), np.maximum(share, 1e-9), width=1.0, color=REAL)
        axis.set(yscale="log", ylim=(1e-6, 1), xlabel="codes, most used first", ylabel="share of all positions")
        return _svg(figure)


def grey_values(cases: dict[str, list[np.ndarray]]) -> str:
    """How often each grey value above 0 occurs in the slices (H, W) uint8 of each case: a line per case."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 2.6), layout="constrained")
        axis = figure.subplots()
        for name, slices in cases.items():
            counts = np.bincount(np.concatenate([image.ravel() for image in slices]), minlength=256)[1:]
            axis.plot(np.arange(1, 256), counts / max(1, counts.sum()), linewidth=0.8, label=name)
        axis.set(xlabel="grey value", ylabel="share of pixels above 0", ylim=(0, None))
        if len(cases) <= 10:
            axis.legend(frameon=False, fontsize=7)
        return _svg(figure)


def overlay(image: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """A slice (H, W) uint8 and its label map (H, W) -> (H, W, 3) uint8: a color per class over it, none for class 0."""
    grey = np.repeat(image[..., None], 3, 2)  # (H, W, 3)
    if labels is None:
        return grey
    color = COLORS[(labels.astype(int) - 1) % len(COLORS)]  # (H, W, 3)
    mixed = (1 - OPACITY) * grey + OPACITY * color
    return np.where(labels[..., None] > 0, mixed.round().astype(np.uint8), grey)


def montage(rows: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Rows of slices, all (H, W) uint8 or all in color (H, W, 3), as one PNG; shorter rows end in white."""
    from torchvision.utils import make_grid  # here: it takes seconds to import, and most processes draw nothing

    longest, white = max(map(len, rows)), np.full_like(rows[0][0], 255)
    images = np.stack([image for row in rows for image in (*row, *[white] * (longest - len(row)))])  # (N, H, W[, 3])
    slices = torch.from_numpy(images.reshape(*images.shape[:3], -1)).permute(0, 3, 1, 2)  # (N, 1 or 3, H, W)
    sheet = make_grid(slices, nrow=longest, padding=GAP, pad_value=255)  # (3, H, W)
    buffer = io.BytesIO()
    pixels = sheet[0] if images.ndim == 3 else sheet.permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def embed(png: bytes) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
