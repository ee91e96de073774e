"""Stage 2 with the masked prior: the loop that trains it to tell masked codes from those around them."""

import copy
import math

import ray.train.torch
import torch
import torch.nn.functional as F

from oasisgen.config import CODE_SIZE, TrainConfig
from oasisgen.data.feed import Feed, Stored, epoch_batches, steps_per_epoch
from oasisgen.models.dcgan import VectorPalette
from oasisgen.models.masked import PLACES, MaskedPrior
from oasisgen.training import checkpoint
from oasisgen.training.averaging import average
from oasisgen.training.painted import all_maps, lacking, painted_maps, real_maps, use_of_codes
from oasisgen.training.vqvae import cosine
from oasisgen.training.worker import Driver, Pace, Worker, raw


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
    course = checkpoint.Course(worker, config, "masked", parts, ("loss",))
    real_use = use_of_codes(real_maps(maps), len(codebook))
    pace = Pace(c.epochs * steps, c.batch_size, course.step)
    timer = checkpoint.Timer(worker, config.checkpoint_seconds, course.step)

    while (epoch := len(course.past)) < c.epochs:
        for numbers, _ in epoch_batches(
            len(maps), c.batch_size, config.seed, epoch, worker.rank, worker.world, first=course.step % steps
        ):
            share = worker.share(len(numbers), c.batch_size)
            random = torch.Generator().manual_seed((config.seed << 20) + course.step * worker.world + worker.rank)
            real = worker.tensor(maps.rows(numbers, "codes").astype("int64"))  # (B, 64, 64)
            levels = worker.tensor(maps.rows(numbers, "level").astype("int64"))  # (B,)
            masked, places = (each.to(worker.device) for each in mask(len(real), c.places, random))
            sketch = prior.sketch(weights[numbers], levels)  # (B, D, 64, 64)
            for group in optimizer.param_groups:
                group["lr"] = course.rate * cosine(c.learning_rate, course.step, c.epochs * steps)
            with worker.autocast():
                logits = guesser(prior.palette.paint(real), masked, sketch, levels, places)  # (B, N, K)
            wanted = real.flatten(1).gather(1, places)  # (B, N)
            loss = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())
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


def mask(count: int, asked: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Which places of `count` maps are masked (B, 1, 64, 64), and `asked` of them (B, N).

    Shares of masked places are those that maps have while they are filled in.
    """
    order = torch.rand(count, PLACES, generator=random).argsort(1)  # (B, 4096)
    shares = torch.cos(torch.rand(count, 1, generator=random) * math.pi / 2)  # (B, 1)
    chosen = torch.arange(PLACES) < (shares * PLACES).long().clamp(min=asked)  # (B, 4096)
    masked = torch.zeros(count, PLACES, dtype=torch.bool).scatter_(1, order, chosen)
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
