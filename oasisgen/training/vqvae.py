"""Stage 1: the loop that trains the VQ-VAE."""

import copy
from typing import Any

import numpy as np
import ray.train.torch
import torch
import torch.nn.functional as F

from oasisgen.config.train import TrainConfig, VQVAEConfig
from oasisgen.data.feed import Feed, Source, chunks
from oasisgen.data.pixels import to_uint8, to_unit
from oasisgen.metrics.ssim import ssim, ssim_loss
from oasisgen.models.quantizer import count_codes, perplexity
from oasisgen.models.vqvae import VQVAE
from oasisgen.precision import autocast
from oasisgen.training.averaging import average
from oasisgen.training.schedule import learning_rate
from oasisgen.training.stage import StageState, non_finite
from oasisgen.training.worker import Worker, unwrap

LOSSES = ("loss", "reconstruction_loss", "ssim_loss", "quantizer_loss")  # of a step


def train_vqvae(config: TrainConfig, worker: Worker, train: Source, validate: Source) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged after too many rollbacks."""
    c = config.vqvae
    slices, held_out = train.load(), validate.load()
    rows = held_out.sample(c.validate_slices)
    scale = error_scale(slices, c)
    size = c.crop_of(slices.image_size)

    ddp = {"broadcast_buffers": c.norm == "batch"}  # the codebook is equal on all ranks anyway
    model = ray.train.torch.prepare_model(VQVAE(c).to(memory_format=torch.channels_last), parallel_strategy_kwargs=ddp)
    optimizer = torch.optim.Adam(model.parameters(), lr=c.learning_rate, fused=True)
    averaged = copy.deepcopy(unwrap(model)).requires_grad_(False)
    parts = {"averaged": averaged, "model": unwrap(model), "optimizer": optimizer}
    state = StageState(worker, config, "vqvae", slices, parts, LOSSES)

    while state.epoch < c.epochs:
        model.train()
        batches = state.batches()
        for (pixels,) in worker.ahead((cropped(slices, numbers, points, size),) for numbers, points in batches):
            share = state.share(len(pixels))
            x = to_unit(pixels.unsqueeze(1))  # (B, 1, h, w)
            for group in optimizer.param_groups:
                group["lr"] = state.lr_factor * learning_rate(c, state.step, state.total_steps)
            losses = losses_of(model, x, scale, c, state.random(same_on_ranks=True))
            optimizer.zero_grad(set_to_none=True)
            (losses[0] * share).backward()
            if c.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), c.max_grad_norm)
            optimizer.step()
            unwrap(model).quantizer.step()
            average(averaged, unwrap(model), c.weight_ema_decay, state.step)
            state.end_step(*losses, share=share, line=lambda: f"loss {losses[0].item():.4f}")

        means = state.mean_losses()
        if state.roll_back_if(non_finite(means)):
            continue
        scores = score(averaged, held_out, rows, worker)
        best = max((epoch.metrics["ssim"] for epoch in state.past), default=0.0)
        fell = best - scores["ssim"] > c.max_ssim_drop
        if state.roll_back_if(f"SSIM fell from {best:.3f} to {scores['ssim']:.3f}" if fell else ""):
            continue
        state.end_epoch(
            {**means, "learning_rate": optimizer.param_groups[0]["lr"], **scores},
            f"loss {means['loss']:.4f}, SSIM {scores['ssim']:.4f}, {scores['codes_in_use']}/{c.codebook_size} codes",
        )


def cropped(slices: Feed, numbers: np.ndarray, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Of some rows (B,) the crop of `size` (h, w) whose corner a point in [0, 1)^2 (B, 2) chooses: (B, h, w) uint8."""
    room = np.array(slices.image_size) - size + 1  # corners along each axis
    return slices.crops(numbers, (points * room).astype(int), size)


def losses_of(
    model: torch.nn.Module, x: torch.Tensor, scale: float, config: VQVAEConfig, random: torch.Generator | None
) -> tuple[torch.Tensor, ...]:
    """`LOSSES` of a step on x (B, 1, h, w) in [-1, 1], each (); `scale` as `error_scale`."""
    with autocast(x.device):
        y = model(x, random, config.batch_size)
    error = F.mse_loss(y.image.float(), x) / scale
    unlike = ssim_loss(y.image.float(), x) if config.ssim_weight else torch.zeros_like(error)
    return error + config.ssim_weight * unlike + y.quantizer_loss, error, unlike, y.quantizer_loss


def error_scale(slices: Feed, config: VQVAEConfig) -> float:
    """What the squared error is divided by: the pixels' variance over 512 slices in [-1, 1], or 1."""
    if config.loss_scale == "none":
        return 1.0
    sample = slices.rows(slices.sample(512), "image")
    return float((sample / 127.5).var())


@torch.no_grad()
def score(model: VQVAE, slices: Feed, rows: Any, worker: Worker) -> dict[str, Any]:
    """Mean SSIM of the written 8-bit reconstructions of some rows, and the codes they use; the ranks share the work."""
    model.eval()
    total = torch.zeros((), device=worker.device)
    counts = torch.zeros(model.quantizer.codebook.shape[0], device=worker.device)  # (K,)
    mine = chunks(rows[worker.rank :: worker.world], 16)
    for (images,) in worker.ahead((slices.rows(numbers, "image"),) for numbers in mine):  # (B, H, W) uint8
        with worker.autocast():
            y = model(to_unit(images.unsqueeze(1)))
        total += ssim(to_uint8(y.image).squeeze(1), images).sum()
        counts += count_codes(y.codes.view(1, -1), len(counts))[0]
    worker.sum(total, counts)
    return {
        "ssim": float(total) / len(rows),
        "codes_in_use": int((counts > 0).sum()),
        "perplexity": float(perplexity(counts)),
    }
