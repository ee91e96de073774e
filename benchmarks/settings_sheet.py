"""The same sample ids under different settings, as one picture: `python -m benchmarks.settings_sheet RUN --ids 0-7`.

A row for each setting, a column for each id. The slices of the first row are those that `jobs/generate.py` writes; in
each other row one setting differs. Temperature and decoding steps belong to a trained masked prior; here they are
replaced after training.
"""

import argparse
import io
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from oasisgen import cli
from oasisgen.config.generate import MOST_IDS, Precision
from oasisgen.config.ranges import number_ranges
from oasisgen.config.train import MaskedConfig
from oasisgen.precision import has_bfloat16
from oasisgen.reports.figures import montage
from oasisgen.sampling.ids import groups
from oasisgen.sampling.sample import Sampler

TEMPERATURES, DECODING_STEPS, REDRAWN = (1.5, 0.7), (4, 24), (0.0,)  # of the rows, if the prior has such settings
LABELS = 180  # pixels to the left of the slices, for the names of the rows


class Setting(NamedTuple):
    """A row of the sheet."""

    label: str
    changed: dict[str, Any]  # settings of the prior that differ from the trained ones
    precision: Precision = "bfloat16"


def settings_of(
    prior: object,
    bfloat16: bool,
    temperatures: Sequence[float],
    decoding_steps: Sequence[int],
    redrawn: Sequence[float] = (),
) -> list[Setting]:
    """As trained, then with one setting changed in each row; `prior` is the configuration of the trained one."""
    rows = [Setting("as trained", {})]
    if isinstance(prior, MaskedConfig):
        trained = (
            f"temperature {prior.temperature:g},\n{prior.decoding_steps} decoding steps,\n{prior.redrawn:g} redrawn"
        )
        rows[0] = Setting(f"as trained:\n{trained}", {})
        rows += [Setting(f"temperature {value:g}", {"temperature": value}) for value in temperatures]
        rows += [Setting(f"{value} decoding steps", {"decoding_steps": value}) for value in decoding_steps]
        rows += [Setting(f"{value:g} redrawn", {"redrawn": value}) for value in redrawn]
    return [*rows, Setting("float32", {}, "float32")] if bfloat16 else rows


def sample_with(sampler: Sampler, setting: Setting, ids: Sequence[int]) -> np.ndarray:
    """The slices of some ids under a setting: (N, H, W) uint8. The sampler itself stays as it is."""
    trained, mixed = sampler.prior.config, sampler.mixed
    if setting.changed:
        sampler.prior.config = replace(trained, **setting.changed)
    sampler.mixed = mixed and setting.precision == "bfloat16"
    try:
        made = [sampler.sample(group) for group in groups(np.array(ids))]
    finally:
        sampler.prior.config, sampler.mixed = trained, mixed
    images = {number: image for each in made for number, image in zip(each["id"].tolist(), each["image"], strict=True)}
    return np.stack([images[number] for number in ids])


def sheet(rows: Sequence[tuple[str, np.ndarray]], scale: float = 1.0) -> Image.Image:
    """Rows of slices (N, H, W) uint8, each with its name to the left, as one grey picture."""
    slices = Image.open(io.BytesIO(montage([list(images) for _, images in rows])))
    size = round(slices.width * scale), round(slices.height * scale)
    picture = Image.new("L", (LABELS + size[0], size[1]), 255)
    picture.paste(slices.resize(size, Image.Resampling.LANCZOS), (LABELS, 0))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for number, (label, _) in enumerate(rows):
        middle = (number + 0.5) * size[1] / len(rows)
        draw.multiline_text((4, middle), label, fill=0, font=font, anchor="lm")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="URI of a run or bundle")
    parser.add_argument("--ids", default="0-7", help="sample ids, like 8,40,72-75; an id determines the level")
    parser.add_argument("--base-seed", type=int, default=0)
    parser.add_argument("--temperatures", type=float, nargs="*", default=TEMPERATURES)
    parser.add_argument("--decoding-steps", type=int, nargs="*", default=DECODING_STEPS)
    parser.add_argument("--redrawn", type=float, nargs="*", default=REDRAWN, help="shares of the codes")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the slices in the picture; 0.5 is half")
    parser.add_argument("--out", default="settings.png", help="the picture")
    arguments = parser.parse_args()
    try:
        ids = number_ranges("ids", arguments.ids, MOST_IDS)
    except ValueError as error:
        parser.error(str(error))
    sampler = Sampler(arguments.run, arguments.base_seed)
    ways = arguments.temperatures, arguments.decoding_steps, arguments.redrawn
    rows = settings_of(sampler.prior.config, has_bfloat16(sampler.device), *ways)
    made = [(setting.label, sample_with(sampler, setting, ids)) for setting in rows]
    sheet(made, arguments.scale).save(arguments.out, optimize=True)
    print(f"{Path(arguments.out).absolute()}: {len(rows)} settings, ids {arguments.ids}")
    print(f"{platform.machine()}, {sampler.device_name}, torch {torch.__version__}")


if __name__ == "__main__":
    cli.run(main, "benchmarks.settings_sheet", continues=False)
