"""The report of a training run: what it learned."""

from typing import Any

import numpy as np

from oasisgen import __version__, storage
from oasisgen.config.folder import flatten
from oasisgen.data.feed import chunks
from oasisgen.lock import Commit
from oasisgen.reports import figures
from oasisgen.reports.page import Section, interval, render

SHOWN = 8  # slices side by side


LOSSES = {  # panels of stage 2, by prior
    "dcgan": {"losses": ["generator_loss", "discriminator_loss"], "mean logit": ["real_logit", "fake_logit"]},
    "masked": {"loss": ["loss"]},
}


PAINTED = ["codes_in_use", "perplexity"]


def write_run_report(
    out: str,
    config: dict[str, Any],
    metrics: dict[str, Any],
    histories: dict[str, list[dict[str, Any]]],
    pairs: list[tuple[np.ndarray, np.ndarray]],
    generated: list[tuple[np.ndarray, np.ndarray]],
    commit: Commit,
) -> None:
    """`slices.png`, rows of real, reconstructed, synthetic slices, and by `commit` `<out>/report/index.html` of a run.

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
            columns=("measure", "this run", "the seed, as reported"),
            table=(
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
    page = render(title="Training run", subtitle=subtitle, sections=sections)
    commit(storage.join(out, "report", "index.html"), page)
