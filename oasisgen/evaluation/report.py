"""The two reports: what a run learned, and what a batch holds. Each is one HTML file that needs nothing else."""

import io
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from PIL import Image

from oasisgen import __version__, storage
from oasisgen.config import flatten
from oasisgen.data.feed import Feed, chunks
from oasisgen.evaluation import figures, quality

SHOWN = 8  # slices side by side
MEASURES = {
    "ssim_real": "ssim_real: mean SSIM to held-out real slices of the level",
    "ssim_train_max": "ssim_train_max: SSIM to the nearest training slice",
    "copy_ratio": "copy_ratio: distance to the nearest training slice over that to the nearest held-out one",
    "suspected_copies": "suspected copies: share with a lower copy_ratio than 99 % of held-out slices",
    "ms_ssim": "ms_ssim: MS-SSIM between slices of one level; higher is less variety",
    "fid": "FID",
    "kid": "KID",
    "precision": "precision: synthetic slices that lie among real ones",
    "recall": "recall: real slices that lie among synthetic ones",
    "density": "density: how deep among real ones",
    "coverage": "coverage: real slices with a synthetic one near",
}

LOSSES = {  # panels of stage 2, by prior
    "dcgan": {"losses": ["generator_loss", "discriminator_loss"], "mean logit": ["real_logit", "fake_logit"]},
    "masked": {"loss": ["loss"]},
}
PAINTED = ["codes_in_use", "perplexity"]


@dataclass(frozen=True)
class Section:
    """A heading with text, a table, a figure, or all of them."""

    heading: str
    text: str = ""
    columns: tuple[str, ...] = ()
    table: tuple[tuple[Any, ...], ...] = ()
    figure: str = ""
    slices: bool = False  # the figure is a montage: as wide as the page


def render(uri: str, title: str, subtitle: str, sections: list[Section]) -> None:
    """Write the page."""
    source = resources.files("oasisgen.evaluation").joinpath("report.html").read_text()
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    storage.write_text(uri, template.render(title=title, subtitle=subtitle, sections=sections))


def interval(value: dict[str, float], digits: int = 4) -> str:
    """`0.9630 (0.9611 to 0.9648)`."""
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def write_run_report(
    out: str,
    config: dict[str, Any],
    metrics: dict[str, Any],
    histories: dict[str, list[dict[str, Any]]],
    pairs: list[tuple[np.ndarray, np.ndarray]],
    generated: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    """`<out>/report/index.html` of a training run, and `slices.png`: rows of real, reconstructed, synthetic slices.

    `pairs` are (real, reconstructed) held-out slices, `generated` (synthetic, real of the same level), all (256, 256)
    uint8.
    """
    quality = metrics["reconstruction"]
    K, prior = config["vqvae"]["codebook_size"], config["prior"]
    difference = [128 + np.clip(b.astype(int) - a, -128, 127) for a, b in pairs]
    sections = [
        Section(
            "Reconstruction",
            f"Every slice of the validate split ({quality['slices']} slices, {quality['cases']} cases), in evaluation "
            "mode, on the 8-bit image that would be written. Intervals: 95 %, bootstrap over cases.",
            ("measure", "this run", "the seed, as reported"),
            (
                ("SSIM", interval(quality["ssim"]), "0.8462 (best epoch, one batch of 16 test slices)"),
                ("PSNR, dB", interval(quality["psnr_db"], 2), ""),
                ("codes in use", f"{quality['codes_in_use']} of {K}", ""),
                ("perplexity", f"{quality['perplexity']:.0f}", ""),
            ),
        ),
        Section(
            "Real, reconstructed, difference",
            "Held-out slices, spread over the split. Grey in the last row is no difference.",
            figure=figures.embed(
                figures.montage([*zip(*pairs, strict=True), [d.astype(np.uint8) for d in difference]])
            ),
            slices=True,
        ),
        Section(
            "Stage 1: the VQ-VAE",
            figure=figures.curves(
                histories["vqvae"],
                {
                    "loss": ["reconstruction_loss", "ssim_loss", "quantizer_loss"],
                    "SSIM, validate": ["ssim"],
                    "codebook": ["codes_in_use", "perplexity"],
                },
            ),
        ),
        Section(
            "Use of the codebook",
            "Over the code maps of the whole validate split.",
            figure=figures.code_usage(metrics["code_counts"]),
        ),
        Section(
            "Stage 2: the DCGAN" if prior == "dcgan" else "Stage 2: the masked prior",
            figure=figures.curves(histories[prior], LOSSES[prior] | {"codes of 64 painted maps": PAINTED}),
        ),
        Section(
            "The feature network",
            "Trained beside the models, on real slices: what the measures of a batch see with.",
            figure=figures.curves(
                histories["features"],
                {name: [f"{name}_loss"] for name in ("level", "damage", "anatomy")},
            ),
        ),
        Section(
            "Generated, and real slices of the same levels",
            "Upper rows of each pair: synthetic. Lower rows: real held-out slices. Sample ids from 0, not chosen.",
            figure=figures.embed(
                figures.montage([row for chosen in chunks(generated, SHOWN) for row in zip(*chosen, strict=True)])
            ),
            slices=True,
        ),
        Section("Configuration", table=tuple((name, str(value)) for name, value in flatten(config).items())),
    ]
    subtitle = f"model {metrics['model'][:12]}, trained on {config['data']['uri']}, oasisgen {__version__}"
    rows = [*zip(*pairs, strict=True), [a for a, _ in generated[:: len(generated) // SHOWN]]]
    storage.write_bytes(storage.join(out, "report", "slices.png"), figures.montage(rows))
    render(storage.join(out, "report", "index.html"), "Training run", subtitle, sections)


def write_batch_report(out: str, summary: dict[str, Any], slices: pa.Table, floor: pa.Table, train: Feed) -> None:
    """`<out>/report/index.html` of a batch: numbers beside their floor, and pictures to check them by."""
    rows = slices.to_pylist()
    spread = [rows[i] for i in np.linspace(0, len(rows) - 1, min(4 * SHOWN, len(rows))).round().astype(int)]
    spread.sort(key=lambda row: row["level"])
    copied = sorted(rows, key=lambda row: -row["ssim_train_max"])[:SHOWN]
    worst = sorted(rows, key=lambda row: row["ssim_real"])[:SHOWN]
    where = {
        (case, int(level)): number
        for number, (case, level) in enumerate(
            (case, level) for block in train.blocks for case, level in zip(block["case"], block["level"], strict=True)
        )
    }

    def synthetic(row: dict[str, Any]) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(storage.read_bytes(storage.join(out, row["file"])))))

    def nearest(row: dict[str, Any]) -> np.ndarray:
        number = where[row["nearest_case"], row["nearest_level"]]
        return train.rows(np.array([number]), "image")[0]

    def beside_nearest(chosen: list[dict[str, Any]]) -> str:
        return figures.embed(figures.montage([[synthetic(row) for row in chosen], [nearest(row) for row in chosen]]))

    sections = [
        Section(
            "In numbers",
            "No measure is to be read alone: what counts is how close it comes to the floor, the same measure of real "
            "slices. Features are those of the run's own network.",
            ("measure", "synthetic", "floor", "distance"),
            tuple(
                (MEASURES[name], f"{m['value']:.4f}", f"{m['floor']:.4f}", f"{m['distance']:+.4f}")
                for name, m in summary["measures"].items()
            ),
        ),
        Section(
            "Distributions",
            figure=figures.distributions(slices, floor, {name: name for name in quality.PER_SLICE}),
        ),
        Section(
            "Slices, by level",
            "Evenly spaced sample ids, sorted by level.",
            figure=figures.embed(
                figures.montage([[synthetic(row) for row in chosen] for chosen in chunks(spread, SHOWN)])
            ),
            slices=True,
        ),
        Section(
            "Nearest to the training data",
            "The slices with the highest ssim_train_max, each above its nearest training slice, which is the best by "
            "SSIM of the eight nearest as thumbnails.",
            ("id", "level", "SSIM", "training slice"),
            tuple(
                (
                    r["id"],
                    r["level"],
                    f"{r['ssim_train_max']:.4f}",
                    f"case {r['nearest_case']} level {r['nearest_level']}",
                )
                for r in copied
            ),
            beside_nearest(copied),
            slices=True,
        ),
        Section(
            "Least like real ones",
            "The slices with the lowest ssim_real, each above its nearest training slice.",
            ("id", "level", "ssim_real"),
            tuple((r["id"], r["level"], f"{r['ssim_real']:.4f}") for r in worst),
            beside_nearest(worst),
            slices=True,
        ),
        Section(
            "Provenance",
            table=(
                ("model", summary["model"]),
                ("measured against", summary["data"]),
                ("base seed", summary["base_seed"]),
                ("slices", summary["count"]),
                ("oasisgen", __version__),
            ),
        ),
    ]
    title = f"{summary['count']} synthetic slices"
    render(storage.join(out, "report", "index.html"), title, f"model {summary['model'][:12]}", sections)
