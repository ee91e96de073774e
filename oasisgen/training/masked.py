"""Stage 2 with the masked prior: the loop that trains it to predict masked codes from the others."""

import copy
import math
from itertools import pairwise

import ray.train.torch
import torch
import torch.nn.functional as F

from oasisgen.config.data import Shape
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import Feed, Source, chunks
from oasisgen.models.codes import VectorEmbedding
from oasisgen.models.masked import MaskedPrior, decoding_ends
from oasisgen.precision import autocast
from oasisgen.training.averaging import average
from oasisgen.training.collapse import (
    all_maps,
    collapsed,
    generated_maps,
    labelled,
    map_statistics,
    real_maps,
    usage_of,
    watched_levels,
)
from oasisgen.training.schedule import cosine
from oasisgen.training.stage import StageState, non_finite, step_seed
from oasisgen.training.worker import Worker, unwrap

SCORED = 128  # held-out maps whose cross-entropy is computed after every epoch, evenly spaced
SCORED_AT_ONCE = 16


def train_masked(
    config: TrainConfig, worker: Worker, codes: Source, held_out: Source, codebook: torch.Tensor, shape: Shape
) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged after too many rollbacks.

    `codes` and `held_out` are the code maps of the train and the validate split, `codebook` is (K, D). The averaged
    predictor, not the last one, is what a bundle samples with.
    """
    c = config.masked
    maps, validate = codes.load(), held_out.load()

    prior, coefficients = initial_masked_prior(config, maps, codebook, shape)
    prior, coefficients = prior.to(worker.device), coefficients.to(worker.device)  # (N, P)
    worker.broadcast(coefficients, *prior.buffers())
    averaged = copy.deepcopy(prior).requires_grad_(False)
    predictor = ray.train.torch.prepare_model(prior.predictor.to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam(predictor.parameters(), lr=c.learning_rate, betas=(0.9, 0.98), fused=True)
    parts = {"averaged": averaged, "prior": prior, "optimizer": optimizer}
    state = StageState(worker, config, "masked", maps, parts, ("loss",))
    all_levels = maps.column("level")
    watched = watched_levels(all_levels)
    real_use = map_statistics(real_maps(maps, all_levels, watched), len(codebook))

    while state.epoch < c.epochs:
        for real, levels, rows in worker.ahead(labelled(maps, numbers) for numbers, _ in state.batches()):
            share = state.share(len(levels))
            low_rank = prior.low_rank_sample(coefficients[rows], levels)  # (B, D, h, w)
            for group in optimizer.param_groups:
                group["lr"] = state.lr_factor * cosine(c.learning_rate, state.step, state.total_steps)
            loss = loss_of(predictor, prior, real, low_rank, levels, state.random())
            optimizer.zero_grad(set_to_none=True)
            (loss * share).backward()
            torch.nn.utils.clip_grad_norm_(predictor.parameters(), c.max_grad_norm)
            optimizer.step()
            average(averaged.predictor, unwrap(predictor), c.weight_ema_decay, state.step)
            state.end_step(loss, share=share, line=lambda: f"loss {loss.item():.4f}")

        means = state.mean_losses()
        if state.roll_back_if(non_finite(means)):
            continue
        usage = map_statistics(generated_maps(averaged, watched, config.seed, worker), len(codebook))
        if state.roll_back_if(collapsed(usage, real_use, c.collapse_threshold)):
            continue
        scores = {"held_out_loss": held_out_loss(averaged, validate, config.seed, worker)}
        line = f"loss {means['loss']:.4f}, held-out {scores['held_out_loss']:.4f}, {usage['codes_in_use']} codes"
        state.end_epoch({**means, **scores, **usage}, line)


def loss_of(
    predictor: torch.nn.Module,
    prior: MaskedPrior,
    real: torch.Tensor,
    low_rank: torch.Tensor,
    levels: torch.Tensor,
    random: torch.Generator | None,
) -> torch.Tensor:
    """Cross-entropy of some masked codes of the maps `real` (B, h, w) of `levels` (B,): ().

    `predictor` is the prior's, inside DDP or not; `low_rank` is (B, D, h, w).
    """
    masked, positions = mask(real, prior.config.positions_of(prior.shape), random)
    codes = real.flatten(1)  # (B, h*w)
    with autocast(real.device):
        logits = prior.logits(predictor, codes, masked, low_rank, levels, positions)  # (B, N, K)
    return F.cross_entropy(logits.flatten(0, 1), codes.gather(1, positions).flatten())


@torch.no_grad()
def held_out_loss(prior: MaskedPrior, maps: Feed, seed: int, worker: Worker) -> float:
    """Cross-entropy per code, in nats, of SCORED held-out maps that are decoded in as many steps as when sampling.

    It is the mean negative log-likelihood of a map given its own low-rank sample. The ranks share the maps (a
    collective); the random numbers are the same at every call.
    """
    total = torch.zeros((), device=worker.device)
    batches = list(chunks(maps.sample(SCORED), SCORED_AT_ONCE))
    ends = decoding_ends(prior.shape.codes, prior.config.decoding_steps)
    for number in range(worker.rank, len(batches), worker.world):
        codes, levels, _ = (torch.from_numpy(array).to(worker.device) for array in labelled(maps, batches[number]))
        random = worker.random(step_seed(seed, number, 0))
        order = torch.rand(len(codes), prior.shape.codes, generator=random, device=worker.device).argsort(1)  # (B, h*w)
        low_rank = prior.low_rank_sample(prior.pca_prior.coefficients(codes, levels, prior.embedding), levels)
        flat, masked = codes.flatten(1), torch.ones_like(order, dtype=torch.bool)  # (B, h*w) each
        for first, end in pairwise(ends):
            positions = order[:, first:end]  # (B, N)
            with worker.autocast():
                logits = prior.logits(prior.predictor, flat, masked, low_rank, levels, positions)  # (B, N, K)
            total += F.cross_entropy(logits.flatten(0, 1), flat.gather(1, positions).flatten(), reduction="sum")
            masked.scatter_(1, positions, False)
    worker.sum(total)
    return float(total) / (sum(map(len, batches)) * prior.shape.codes)


def mask(maps: torch.Tensor, asked: int, random: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """A random mask (B, h*w) of maps (B, h, w), and `asked` of its positions (B, N), which are to be predicted.

    The share that is masked follows the cosine schedule by which a map is decoded (Chang et al. 2022,
    arXiv:2202.04200).
    """
    count, positions, device = len(maps), maps[0].numel(), maps.device
    order = torch.rand(count, positions, generator=random, device=device).argsort(1)  # (B, h*w)
    shares = torch.cos(torch.rand(count, 1, generator=random, device=device) * math.pi / 2)  # (B, 1)
    chosen = torch.arange(positions, device=device) < (shares * positions).long().clamp(min=asked)  # (B, h*w)
    masked = torch.zeros_like(chosen).scatter_(1, order, chosen)
    return masked, order[:, :asked]


def initial_masked_prior(
    config: TrainConfig, maps: Feed, codebook: torch.Tensor, shape: Shape
) -> tuple[MaskedPrior, torch.Tensor]:
    """A prior with the PCA of the training split, its predictor untrained, and the coefficients (N, P) of the maps."""
    codes = all_maps(maps)
    usage = usage_of(codes, len(codebook))
    prior = MaskedPrior(config.masked, VectorEmbedding(codebook, usage), shape)
    with torch.no_grad():  # the predictor starts from how frequent each code is
        prior.predictor.head.bias.copy_(((usage + 1) / usage.sum()).log())
        prior.predictor.head.weight.mul_(0.1)
    return prior, prior.fit(codes)
