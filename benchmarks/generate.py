"""Generation beside the bare model and beside a script without Ray; memory; what a slice's measures cost: `make bench`.

The models have the sizes of `full`. They are hardly trained, which changes nothing in how long they take; but heads on
black, as trained ones paint, are compared sooner than noise.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from benchmarks.ablation_sampling import groups_of
from benchmarks.common import alone, packed, watched_memory
from benchmarks.models import training
from oasisgen import storage
from oasisgen.config.generate import GenerateConfig
from oasisgen.config.presets import FULL
from oasisgen.config.train import PriorName, TrainConfig
from oasisgen.data.feed import chunks
from oasisgen.data.pixels import to_unit
from oasisgen.metrics.bootstrap import Interval
from oasisgen.models.bundle import BundleSettings, read_bundle, weights_of, write_bundle
from oasisgen.models.features import FeatureNetwork
from oasisgen.models.priors import Prior
from oasisgen.models.scores import BundleMetrics, MeasuredData, ReconstructionScores
from oasisgen.models.vqvae import VQVAE
from oasisgen.pipelines.train import trained_on
from oasisgen.sampling.ids import GROUP
from oasisgen.training import dcgan, masked

if TYPE_CHECKING:
    from oasisgen.data.slices import DataSet

COUNTS: dict[PriorName, tuple[int, int]] = {"dcgan": (256, 2304), "masked": (64, 512)}  # a short batch, and a long one
SIZES = (1_000, 10_000, 100_000)  # of batches whose memory is compared
COMPARED = 192  # slices
NAMED = "case", "subject", "level"  # the columns of a data set by which slices are searched
SHOWN, STEPS = 1024, 250  # training slices that a model has seen, and how often
SMALL: dict[str, Any] = {"channels": 16, "residual_channels": 8, "residual_blocks": 1}


def write_model(folder: str, config: TrainConfig, data: "DataSet") -> str:
    """A bundle that paints heads on black: some steps of stage 1, and a prior that knows only its template."""
    from oasisgen.data.feed import Feed, evenly_spaced, store
    from oasisgen.data.slices import read_slices

    torch.manual_seed(0)
    train = store(read_slices(data, "train")).load()
    some = evenly_spaced(len(train), SHOWN)
    images = train.rows(some, "image")
    last, vqvae = VQVAE(config.vqvae), VQVAE(config.vqvae).requires_grad_(False)
    for _ in islice(training(last, vqvae, Feed([{"image": images}]), config.vqvae, STEPS), STEPS):
        pass
    with torch.no_grad():
        codes = [vqvae.eval().encode(to_unit(torch.from_numpy(piece).unsqueeze(1))) for piece in chunks(images, GROUP)]
    maps = Feed([{"codes": torch.cat(codes).numpy(), "level": train.rows(some, "level")}])
    codebook = vqvae.quantizer.codebook.detach()
    if config.prior == "masked":
        prior: Prior = masked.initial_masked_prior(config, maps, codebook, data.shape)[0]
    else:
        prior = dcgan.initial_dcgan(config, maps, codebook, data.shape)

    settings = BundleSettings(
        seed=0,
        data=trained_on(data),
        vqvae=config.vqvae,
        prior=config.prior,
        prior_settings=getattr(config, config.prior),
        features=config.features,
    )
    zero = Interval(0.0, 0.0, 0.0)
    scores = ReconstructionScores(MeasuredData(data.uri, data.fingerprint), "train", 0, 0, zero, zero, 0, 0.0, 0.0)
    features, metrics = weights_of(FeatureNetwork(data.shape)), BundleMetrics(scores, ())
    write_bundle(folder, settings, vqvae, prior, features, metrics, storage.write_bytes)
    return folder


def plain(kind: str, model: str, count: int) -> None:
    """Slices per second of a loop over the bare model, `float32` or `bfloat16`, or of a `script` that saves them."""
    from torchvision.utils import save_image

    torch.set_num_threads(os.cpu_count() or 1)
    made = groups_of(read_bundle(model), count + GROUP, mixed=kind == "bfloat16")
    next(made)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for first, group in enumerate(made):
            for number, image in enumerate(group if kind == "script" else []):
                save_image(image[None].float() / 255.0, f"{folder}/{first}-{number}.png")
    print(count / (time.monotonic() - started))


def without_ray(kind: str, model: str, count: int) -> float:
    """The same, in a process of its own."""
    return alone("benchmarks.generate", "--plain", kind, model, str(count))


def job_rate(model: str, counts: tuple[int, int], measure: bool) -> float:
    """Slices per second of the job once it runs: of a long batch, less what a short one takes."""
    from oasisgen.pipelines.generate import generate

    seconds = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            summary = generate(GenerateConfig(model, f"{folder}/b", count=count, base_seed=0, measure=measure))
            assert summary
            seconds.append(summary.seconds.slices)
    return (counts[1] - counts[0]) / (seconds[1] - seconds[0])


def peak_memory(work: Callable[[], object]) -> tuple[float, float]:
    """Most memory, in GB, that the processes of this Ray had for themselves while `work` ran: all, and the largest."""
    with watched_memory() as samples:
        work()
    each = [sample.private for sample in samples]
    return max(map(sum, each)) / 1000, max(map(max, each)) / 1000


def comparing_rate(data: "DataSet", train: int) -> float:
    """Slices that one second of CPU time compares with a training split of so many slices, on one thread."""
    from oasisgen.data.feed import Feed, evenly_spaced, store
    from oasisgen.data.slices import read_slices
    from oasisgen.quality.nearest import RealSlices, index_in_memory

    feeds = {split: store(read_slices(data, split)).load() for split in ("train", "validate")}
    rows = evenly_spaced(len(feeds["train"]), train)
    some = Feed([{name: feeds["train"].rows(rows, name) for name in (*NAMED, "image")}])
    references = RealSlices(index_in_memory(some), index_in_memory(feeds["validate"]))
    chosen = feeds["validate"].rows(np.arange(COMPARED), "image")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    started = time.process_time()
    for number, image in enumerate(chosen):
        references.compare(image, number % data.levels, [0, number])
    return COMPARED / (time.process_time() - started)


def main() -> None:
    from oasisgen import cluster
    from oasisgen.pipelines.generate import generate

    with tempfile.TemporaryDirectory() as folder, cluster.connection():
        _, data = packed(folder, validate=6)
        for prior, counts in COUNTS.items():
            model = write_model(f"{folder}/{prior}", replace(FULL, prior=prior), data)
            bare, mixed, script = (without_ray(kind, model, counts[1]) for kind in ("float32", "bfloat16", "script"))
            for measure in (True, False):
                rate, says = job_rate(model, counts, measure), "with" if measure else "without"
                print(
                    f"generate, {prior}, {says} measures: {rate:.1f} slices per s, {rate / bare:.2f} of the bare "
                    f"model's {bare:.1f}, {rate / mixed:.2f} of its {mixed:.1f} in bfloat16, {rate / script:.2f} of "
                    f"the {script:.1f} of a script with save_image",
                    flush=True,
                )
        small = replace(
            FULL, prior="dcgan", vqvae=replace(FULL.vqvae, **SMALL), dcgan=replace(FULL.dcgan, channels=8, components=8)
        )
        model = write_model(f"{folder}/small", small, data)
        for count, measure in [*((size, False) for size in SIZES), (SIZES[0], True), (SIZES[1], True)]:
            config = GenerateConfig(model, f"{folder}/memory-{count}-{measure}", count=count, measure=measure)
            total, largest = peak_memory(lambda: generate(config))
            print(
                f"peak memory of {count} slices, a small model, {'with' if measure else 'without'} measures: "
                f"{total:.2f} GB, of the largest process {largest:.2f} GB",
                flush=True,
            )
        most = data.count("train")
        few, many = comparing_rate(data, 1000), comparing_rate(data, most)
        print(
            f"comparing with 1000 training slices: {few:.1f} per s of CPU time; with {most}: {many:.1f}, "
            f"cost x {few / many:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
