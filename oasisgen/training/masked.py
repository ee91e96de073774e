"""Stage 2 with the masked prior: the loop that trains it to tell masked codes from those around them."""

import copy
import math

import ray.train.torch
import torch
import torch.nn.functional as F

from oasisgen.config.data import CODE_SIZE
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import Feed, Stored, epoch_batches, steps_per_epoch
from oasisgen.models.codes import VectorEmbedding
from oasisgen.models.masked import POSITIONS, MaskedPrior
from oasisgen.precision import autocast
from oasisgen.training.averaging import average
from oasisgen.training.collapse import all_maps, collapsed, generated_maps, labelled, map_diversity, real_maps
from oasisgen.training.schedule import cosine
from oasisgen.training.stage import Pace, StageState, Timer
from oasisgen.training.worker import Driver, Worker, unwrap


def train_masked(config: TrainConfig, codes: Stored, codebook: torch.Tensor, driver: Driver | None) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged where it goes wrong again and again.

    `codebook` is (K, D). The averaged guesser, not the last one, is what a bundle samples with.
    """
    c = config.masked
    worker = Worker.start(config.seed, driver)
    maps = codes.load()
    steps = steps_per_epoch(len(maps), c.batch_size)

    prior, coefficients = initial_masked_prior(config, maps, codebook)
    prior, coefficients = prior.to(worker.device), coefficients.to(worker.device)  # (N, P)
    worker.broadcast(coefficients, *prior.buffers())
    averaged = copy.deepcopy(prior).requires_grad_(False)
    predictor = ray.train.torch.prepare_model(prior.predictor.to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam(predictor.parameters(), lr=c.learning_rate, betas=(0.9, 0.98), fused=True)
    parts = {"averaged": averaged, "prior": prior, "optimizer": optimizer}
    state = StageState(worker, config, "masked", parts, ("loss",))
    real_use = map_diversity(real_maps(maps), len(codebook))
    pace = Pace(c.epochs * steps, c.batch_size, state.step)
    timer = Timer(worker, config.checkpoint_seconds, state.step)

    while (epoch := len(state.past)) < c.epochs:
        batches = epoch_batches(
            len(maps), c.batch_size, config.seed, epoch, worker.rank, worker.world, first=state.step % steps
        )
        for real, levels, rows in worker.ahead(labelled(maps, numbers) for numbers, _ in batches):
            share = worker.share(len(levels), c.batch_size)
            random = worker.random((config.seed << 20) + state.step * worker.world + worker.rank)
            low_rank = prior.low_rank_sample(coefficients[rows], levels)  # (B, D, 64, 64)
            for group in optimizer.param_groups:
                group["lr"] = state.rate * cosine(c.learning_rate, state.step, c.epochs * steps)
            loss = loss_of(predictor, prior, real, low_rank, levels, random)
            optimizer.zero_grad(set_to_none=True)
            (loss * share).backward()
            torch.nn.utils.clip_grad_norm_(predictor.parameters(), c.max_grad_norm)
            optimizer.step()
            state.add(loss, share=share)
            average(averaged.predictor, unwrap(predictor), c.weight_ema_decay, state.step)
            worker.say(lambda: f"epoch {epoch + 1}/{c.epochs}, loss {loss.item():.4f}, {pace.describe(state.step)}")
            if state.step % steps and timer.due(state.step):
                state.save()

        if not (means := state.means(steps)):
            continue
        usage = map_diversity(generated_maps(averaged, config.seed, worker), len(codebook))
        if state.rolls_back(collapsed(usage, real_use, c.collapse_threshold)):
            continue
        state.end_epoch({**means, **usage, "slices_per_s": round(pace.rate(state.step), 1)})
        worker.say(
            lambda: (
                f"epoch {epoch + 1}/{c.epochs}, loss {means['loss']:.4f}, {usage['codes_in_use']} codes, "
                f"{pace.describe(state.step)}"
            ),
            always=True,
        )


def loss_of(
    predictor: torch.nn.Module,
    prior: MaskedPrior,
    real: torch.Tensor,
    low_rank: torch.Tensor,
    levels: torch.Tensor,
    random: torch.Generator | None,
) -> torch.Tensor:
    """How badly some masked codes of the maps `real` (B, 64, 64), of `levels` (B,), are guessed: ().

    `guesser` is the prior's, inside DDP or not; `sketch` (B, D, 64, 64).
    """
    masked, positions = mask(real, prior.config.positions, random)
    with autocast(real.device):
        logits = predictor(prior.embedding.embed(real), masked, low_rank, levels, positions)  # (B, N, K)
    wanted = real.flatten(1).gather(1, positions)  # (B, N)
    return F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())


def mask(maps: torch.Tensor, asked: int, random: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Which places of maps (B, 64, 64) are masked (B, 1, 64, 64), and `asked` of them (B, N).

    Shares of masked places are those that maps have while they are filled in.
    """
    count, device = len(maps), maps.device
    order = torch.rand(count, POSITIONS, generator=random, device=device).argsort(1)  # (B, 4096)
    shares = torch.cos(torch.rand(count, 1, generator=random, device=device) * math.pi / 2)  # (B, 1)
    chosen = torch.arange(POSITIONS, device=device) < (shares * POSITIONS).long().clamp(min=asked)  # (B, 4096)
    masked = torch.zeros_like(chosen).scatter_(1, order, chosen)
    return masked.view(count, 1, CODE_SIZE, CODE_SIZE), order[:, :asked]


def initial_masked_prior(config: TrainConfig, maps: Feed, codebook: torch.Tensor) -> tuple[MaskedPrior, torch.Tensor]:
    """A prior whose template is that of the training split, and the coefficients (N, P) that its maps have there."""
    codes, levels = all_maps(maps)
    usage = torch.bincount(codes.flatten(), minlength=len(codebook))
    prior = MaskedPrior(config.masked, VectorEmbedding(codebook, usage))
    with torch.no_grad():  # a good first guess is what is frequent
        prior.predictor.head.bias.copy_(((usage + 1) / usage.sum()).log())
        prior.predictor.head.weight.mul_(0.1)
    return prior, prior.fit(codes, levels)
