"""Stage 2 with the masked prior: the loop that trains it to tell masked codes from those around them."""

import copy
import math

import ray.train.torch
import torch
import torch.nn.functional as F

from oasisgen.config.data import CODE_SIZE
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import Feed, Stored, epoch_batches, steps_per_epoch
from oasisgen.models.codes import VectorPalette
from oasisgen.models.masked import PLACES, MaskedPrior
from oasisgen.precision import autocast
from oasisgen.training.averaging import average
from oasisgen.training.collapse import all_maps, labelled, lacking, painted_maps, real_maps, use_of_codes
from oasisgen.training.schedule import cosine
from oasisgen.training.stage import Course, Pace, Timer
from oasisgen.training.worker import Driver, Worker, raw


def train_masked(config: TrainConfig, codes: Stored, codebook: torch.Tensor, driver: Driver | None) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged where it goes wrong again and again.

    `codebook` is (K, D). The averaged guesser, not the last one, is what a bundle samples with.
    """
    c = config.masked
    worker = Worker.start(config.seed, driver)
    maps = codes.load()
    steps = steps_per_epoch(len(maps), c.batch_size)

    prior, weights = untrained(config, maps, codebook)
    prior, weights = prior.to(worker.device), weights.to(worker.device)  # (N, P)
    worker.broadcast(weights, *prior.buffers())
    averaged = copy.deepcopy(prior).requires_grad_(False)
    guesser = ray.train.torch.prepare_model(prior.guesser.to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam(guesser.parameters(), lr=c.learning_rate, betas=(0.9, 0.98), fused=True)
    parts = {"averaged": averaged, "prior": prior, "optimizer": optimizer}
    course = Course(worker, config, "masked", parts, ("loss",))
    real_use = use_of_codes(real_maps(maps), len(codebook))
    pace = Pace(c.epochs * steps, c.batch_size, course.step)
    timer = Timer(worker, config.checkpoint_seconds, course.step)

    while (epoch := len(course.past)) < c.epochs:
        batches = epoch_batches(
            len(maps), c.batch_size, config.seed, epoch, worker.rank, worker.world, first=course.step % steps
        )
        for real, levels, rows in worker.ahead(labelled(maps, numbers) for numbers, _ in batches):
            share = worker.share(len(levels), c.batch_size)
            random = worker.random((config.seed << 20) + course.step * worker.world + worker.rank)
            sketch = prior.sketch(weights[rows], levels)  # (B, D, 64, 64)
            for group in optimizer.param_groups:
                group["lr"] = course.rate * cosine(c.learning_rate, course.step, c.epochs * steps)
            loss = loss_of(guesser, prior, real, sketch, levels, random)
            optimizer.zero_grad(set_to_none=True)
            (loss * share).backward()
            torch.nn.utils.clip_grad_norm_(guesser.parameters(), c.gradient_norm)
            optimizer.step()
            course.add(loss, share=share)
            average(averaged.guesser, raw(guesser), c.average_decay, course.step)
            worker.say(lambda: f"epoch {epoch + 1}/{c.epochs}, loss {loss.item():.4f}, {pace.describe(course.step)}")
            if course.step % steps and timer.due(course.step):
                course.save()

        if not (means := course.means(steps)):
            continue
        usage = use_of_codes(painted_maps(averaged, config.seed, worker), len(codebook))
        if course.goes_back(lacking(usage, real_use, c.least_variety)):
            continue
        course.end_epoch({**means, **usage, "slices_per_s": round(pace.rate(course.step), 1)})
        worker.say(
            lambda: (
                f"epoch {epoch + 1}/{c.epochs}, loss {means['loss']:.4f}, {usage['codes_in_use']} codes, "
                f"{pace.describe(course.step)}"
            ),
            always=True,
        )


def loss_of(
    guesser: torch.nn.Module,
    prior: MaskedPrior,
    real: torch.Tensor,
    sketch: torch.Tensor,
    levels: torch.Tensor,
    random: torch.Generator | None,
) -> torch.Tensor:
    """How badly some masked codes of the maps `real` (B, 64, 64), of `levels` (B,), are guessed: ().

    `guesser` is the prior's, inside DDP or not; `sketch` (B, D, 64, 64).
    """
    masked, places = mask(real, prior.config.places, random)
    with autocast(real.device):
        logits = guesser(prior.palette.paint(real), masked, sketch, levels, places)  # (B, N, K)
    wanted = real.flatten(1).gather(1, places)  # (B, N)
    return F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())


def mask(maps: torch.Tensor, asked: int, random: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Which places of maps (B, 64, 64) are masked (B, 1, 64, 64), and `asked` of them (B, N).

    Shares of masked places are those that maps have while they are filled in.
    """
    count, device = len(maps), maps.device
    order = torch.rand(count, PLACES, generator=random, device=device).argsort(1)  # (B, 4096)
    shares = torch.cos(torch.rand(count, 1, generator=random, device=device) * math.pi / 2)  # (B, 1)
    chosen = torch.arange(PLACES, device=device) < (shares * PLACES).long().clamp(min=asked)  # (B, 4096)
    masked = torch.zeros_like(chosen).scatter_(1, order, chosen)
    return masked.view(count, 1, CODE_SIZE, CODE_SIZE), order[:, :asked]


def untrained(config: TrainConfig, maps: Feed, codebook: torch.Tensor) -> tuple[MaskedPrior, torch.Tensor]:
    """A prior whose template is that of the training split, and the weights (N, P) that its maps have there."""
    codes, levels = all_maps(maps)
    usage = torch.bincount(codes.flatten(), minlength=len(codebook))
    prior = MaskedPrior(config.masked, VectorPalette(codebook, usage))
    with torch.no_grad():  # a good first guess is what is frequent
        prior.guesser.head.bias.copy_(((usage + 1) / usage.sum()).log())
        prior.guesser.head.weight.mul_(0.1)
    return prior, prior.measure(codes, levels)
