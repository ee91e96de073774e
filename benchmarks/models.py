"""Speed of the loops and of their parts beside what one would write or install instead: `make bench`.

As in `benchmarks/speed.py`, A and B alternate and the median of their ratios is printed.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import alone, compare, packed
from oasisgen.config.presets import BASELINE, FULL
from oasisgen.config.train import VQVAEConfig
from oasisgen.data.feed import Feed, epoch_batches
from oasisgen.data.pixels import to_uint8, to_unit
from oasisgen.metrics.ssim import ssim, ssim_loss
from oasisgen.models.quantizer import EMAQuantizer, Quantized, straight_through
from oasisgen.models.vqvae import VQVAE
from oasisgen.precision import autocast
from oasisgen.training.averaging import average
from oasisgen.training.schedule import learning_rate
from oasisgen.training.vqvae import cropped, error_scale

STEPS, WARM_UP = 40, 5
SCORED = 64  # slices
GOAL = 0.8462  # SSIM that the baseline's report gives
SOONER = 20  # times, that `full` is to reach it before the baseline does


class OneHotQuantizer(EMAQuantizer):
    """The same codebook as tutorials write it: pairwise distances, a one-hot row for each vector."""

    def forward(self, z: torch.Tensor, generator: torch.Generator | None = None, whole: int = 0) -> Quantized:
        """(B, D, H, W) -> Quantized."""
        B, D, H, W = z.shape
        flat = z.permute(0, 2, 3, 1).reshape(-1, D)  # (B*H*W, D)
        codes = torch.cdist(flat, self.codebook).argmin(1)  # (B*H*W,)
        one_hot = F.one_hot(codes, len(self.codebook)).float()  # (B*H*W, K)
        vectors = (one_hot @ self.codebook).view(B, H, W, D).permute(0, 3, 1, 2)  # (B, D, H, W)
        if self.training:
            with torch.no_grad():
                self.ema_count.lerp_(one_hot.sum(0), 1.0 - self.decay)
                self.ema_sum.lerp_(one_hot.t() @ flat, 1.0 - self.decay)
                dead = self.ema_count < self.dead_below * len(flat) / len(self.codebook)
                self.ema_count[dead] = self.dead_below * len(flat) / len(self.codebook)
                self.ema_sum[dead] = flat[torch.randint(len(flat), (int(dead.sum()),))] * self.ema_count[dead, None]
                self.codebook.copy_(self.ema_sum / self.ema_count[:, None])
        loss = self.commitment * F.mse_loss(z, vectors.detach())
        return Quantized(straight_through(z, vectors), codes.view(B, H, W), loss)

    def step(self) -> None:
        """The codebook has moved already."""


def losses(
    model: VQVAE, x: torch.Tensor, c: VQVAEConfig, scale: float, step: int, mixed: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a step and what it is without the quantizer's part; in bfloat16 where `mixed` and the CPU has it."""
    with autocast(x.device, mixed):
        y = model(x, torch.Generator().manual_seed(step))
    error = F.mse_loss(y.image.float(), x) / scale
    if c.ssim_weight:
        error = error + c.ssim_weight * ssim_loss(y.image.float(), x)
    return error + y.quantizer_loss, error


def crops(images: Feed, c: VQVAEConfig) -> Iterator[np.ndarray]:
    """Batches (B, crop, crop) uint8, epoch after epoch."""
    for epoch in range(10**6):
        for numbers, points in epoch_batches(len(images), c.batch_size, 0, epoch, 0, 1):
            yield cropped(images, numbers, points, c.crop_of(images.image_size))


def loop(kind: str, folder: str) -> float:
    """Slices per second of stage 1 in this process: `ours`, or `plain`, without anything that makes it fast."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    c = FULL.vqvae
    images = Feed([{"image": np.load(f"{folder}/train.npy")}])
    model, averaged = VQVAE(c), VQVAE(c)
    if kind == "ours":
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate, fused=True)
    else:
        model.quantizer = OneHotQuantizer(c.codebook_size, c.code_dim, c.commitment, c.codebook_ema_decay, c.dead_below)
        optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate, foreach=False)
    batches, started, seen = crops(images, c), 0.0, torch.zeros(())
    for step in range(STEPS + WARM_UP):
        if step == WARM_UP:
            started = time.monotonic()
        if kind == "ours":
            x = to_unit(torch.from_numpy(next(batches)).unsqueeze(1))
        else:
            x = torch.from_numpy(next(batches).astype("float64") / 127.5 - 1).float().unsqueeze(1)
        loss, error = losses(model, x, c, 0.1, step, mixed=kind == "ours")
        optimizer.zero_grad(set_to_none=kind == "ours")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), c.max_grad_norm)
        optimizer.step()
        model.quantizer.step()
        average(averaged, model, c.weight_ema_decay, step)
        seen = seen + (error.detach() if kind == "ours" else error.item())
    return STEPS * c.batch_size / (time.monotonic() - started)


def train_step(
    model: VQVAE,
    averaged: VQVAE,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    c: VQVAEConfig,
    scale: float,
    step: int,
    steps: int,
) -> None:
    """Step number `step` of a schedule of `steps`, on x (B, 1, h, w), as in stage 1."""
    loss, _ = losses(model, x, c, scale, step)
    descend(loss, model, averaged, optimizer, c, step, steps)


def descend(
    loss: torch.Tensor,
    model: VQVAE,
    averaged: VQVAE,
    optimizer: torch.optim.Optimizer,
    c: VQVAEConfig,
    step: int,
    steps: int,
) -> None:
    """What follows the loss in step number `step` of a schedule of `steps`, as in stage 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(c, step, steps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if c.max_grad_norm:
        nn.utils.clip_grad_norm_(model.parameters(), c.max_grad_norm)
    optimizer.step()
    model.quantizer.step()
    average(averaged, model, c.weight_ema_decay, step)


def training(model: VQVAE, averaged: VQVAE, images: Feed, c: VQVAEConfig, steps: int) -> Iterator[float]:
    """Train `model`, and `averaged` behind it, by the loop of stage 1; after every step, the seconds of all so far.

    `steps` is the length of the schedule; who iterates decides when to stop.
    """
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate, fused=True)
    scale, batches, seconds = error_scale(images, c), crops(images, c), 0.0
    for step in itertools.count():
        started = time.monotonic()
        x = to_unit(torch.from_numpy(next(batches)).unsqueeze(1))  # (B, 1, h, w)
        train_step(model, averaged, optimizer, x, c, scale, step, steps)
        seconds += time.monotonic() - started
        yield seconds


def seconds_to_goal(preset: str, folder: str, most: float) -> float:
    """Seconds of training, from the first step on, until 64 held-out slices score 0.8462; infinite beyond `most`."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    c = {"full": FULL, "baseline": BASELINE}[preset].vqvae
    images = Feed([{"image": np.load(f"{folder}/train.npy")}])
    held_out = torch.from_numpy(np.load(f"{folder}/validate.npy"))  # (64, 256, 256)
    averaged, asked = VQVAE(c).requires_grad_(False), 0.0
    for seconds in training(VQVAE(c), averaged, images, c, c.epochs * len(images) // c.batch_size):
        if seconds - asked > max(0.5, 0.05 * seconds):
            asked = seconds
            with torch.no_grad():
                written = to_uint8(averaged.eval()(to_unit(held_out.unsqueeze(1))).image).squeeze(1)
            if float(ssim(written, held_out).mean()) >= GOAL:
                return seconds
            if seconds > most:
                break
    return float("inf")


def own_process(*arguments: Any) -> float:
    """What a function of this file returns in a process of its own, with the variables of our workers for `ours`."""
    from oasisgen.cluster import TORCH_VARIABLES

    variables = {} if "plain" in arguments else TORCH_VARIABLES
    return alone("benchmarks.models", "--alone", json.dumps(arguments), variables=variables)


def quantizer_rate(make: Callable[[], nn.Module], dim: int) -> float:
    """Training steps of a quantizer a second, forward and backward, on 16 maps of 64 x 64 and one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quantizer = make().train()
    z = torch.randn(16, dim, 64, 64, requires_grad=True)
    for step in range(12):
        if step == 2:
            started = time.monotonic()
        output = quantizer(z)
        sum(part.sum() for part in output if part.requires_grad).backward()
        if isinstance(quantizer, EMAQuantizer):
            quantizer.step()
    return 10 / (time.monotonic() - started)


def ranks_rate(stored: dict[str, Any], workers: int, batch_size: int) -> float:
    """Slices per second of stage 1 on so many workers of one thread each, in its second epoch, as its metrics say."""
    from oasisgen import storage
    from oasisgen.training import history
    from oasisgen.training.launch import Stage, fit
    from oasisgen.training.vqvae import train_vqvae

    def one_thread_each(**arguments: Any) -> None:
        torch.set_num_threads(1)
        train_vqvae(**arguments)

    with tempfile.TemporaryDirectory() as out, redirect_stdout(None):
        shape = replace(FULL.vqvae, epochs=2, validate_slices=8, batch_size=batch_size)
        config = replace(FULL, data="", out=out, vqvae=shape, workers=workers, cpus_per_worker=0.5)
        fit(Stage("vqvae", one_thread_each, stored), config)
        first, both = (epoch.slices_per_s for epoch in history.read(storage.join(out, "metrics"), "vqvae"))
        return 1 / (2 / both - 1 / first)


def main() -> None:
    from monai.networks.layers.vector_quantizer import EMAQuantizer as MonaiQuantizer
    from vector_quantize_pytorch import VectorQuantize

    from oasisgen import cluster
    from oasisgen.data.feed import store
    from oasisgen.data.slices import read_slices
    from oasisgen.quality.sets import select_levels

    print(f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}", flush=True)
    c = FULL.vqvae
    with tempfile.TemporaryDirectory() as folder:
        with cluster.connection():
            _, data = packed(folder, validate=3)
            stored = {split: store(read_slices(data, split)) for split in ("train", "validate")}
            for split, count in (("train", data.count("train")), ("validate", SCORED)):
                wanted = np.resize(np.arange(data.levels), count)
                np.save(f"{folder}/{split}.npy", select_levels(stored[split].load(), wanted).images)
            some = {split: store(read_slices(data, split).limit(240 * c.batch_size)) for split in stored}
            for size in (c.batch_size, 8 * c.batch_size):  # those have as many pixels as the baseline's
                compare(
                    {
                        f"training, 2 workers x 1 thread, steps of {size} slices": partial(ranks_rate, some, 2, size),
                        "1 x 1, the same steps": partial(ranks_rate, some, 1, size),
                    }
                )
        compare(
            {
                "the loop of stage 1": partial(own_process, "loop", "ours", folder),
                "without what makes it fast": partial(own_process, "loop", "plain", folder),
            }
        )
        for dim in (c.code_dim, 64):
            makers: dict[str, Callable[[], nn.Module]] = {
                "our quantizer": partial(EMAQuantizer, 512, dim, 0.25, 0.99, 0.03),
                "vector-quantize-pytorch": partial(
                    VectorQuantize,
                    dim,
                    512,
                    decay=0.99,
                    accept_image_fmap=True,
                    rotation_trick=False,
                    threshold_ema_dead_code=2,
                ),
                "MONAI": partial(MonaiQuantizer, 2, 512, dim),
            }
            print(f"512 codes of {dim} numbers:")
            compare({name: partial(quantizer_rate, make, dim) for name, make in makers.items()})
        ours = own_process("seconds_to_goal", "full", folder, 600)
        if ours == float("inf"):
            sys.exit(f"SSIM {GOAL}: `full` does not reach it within 600 s")
        theirs = own_process("seconds_to_goal", "baseline", folder, SOONER * ours)
        reached = f"after {theirs:.0f} s" if theirs < float("inf") else f"not within {SOONER * ours:.0f} s"
        print(f"SSIM {GOAL}: `full` after {ours:.1f} s of training, `baseline` {reached}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--alone", help="[name, argument, …] of one function, as JSON")
    if called := parser.parse_args().alone:
        name, *arguments = json.loads(called)
        callables: dict[str, Callable[..., float]] = {"loop": loop, "seconds_to_goal": seconds_to_goal}
        print(callables[name](*arguments))
    else:
        main()
