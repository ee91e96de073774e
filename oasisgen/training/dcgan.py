"""Stage 2: the loop that trains the DCGAN on code maps."""

import copy
from collections.abc import Sequence
from typing import Any

import ray.train.torch
import torch
import torch.nn.functional as F

from oasisgen.config.train import DCGANConfig, TrainConfig
from oasisgen.data.feed import Feed, Stored, epoch_batches, steps_per_epoch
from oasisgen.models.codes import make_palette
from oasisgen.models.dcgan import DCGAN, Discriminator, as_seen
from oasisgen.training.averaging import average
from oasisgen.training.collapse import all_maps, labelled, lacking, painted_maps, real_maps, use_of_codes
from oasisgen.training.stage import Course, Pace, Timer
from oasisgen.training.worker import Driver, Worker, raw

LOSSES = ("generator_loss", "discriminator_loss", "real_logit", "fake_logit")  # of a step
Networks = tuple[torch.nn.Module, torch.nn.Module]  # the generator of a DCGAN, and its discriminator; or both in DDP
PENALTY_EVERY = 4  # steps; the penalty then weighs as much more (Karras et al. 2020, arXiv:1912.04958)


def train_dcgan(config: TrainConfig, codes: Stored, codebook: torch.Tensor, driver: Driver | None) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged where it goes wrong again and again.

    `codebook` is (K, D). The averaged generator, not the last one, is what a bundle samples with.
    """
    c = config.dcgan
    worker = Worker.start(config.seed, driver)
    maps = codes.load()
    steps = steps_per_epoch(len(maps), c.batch_size)

    gan = untrained(config, maps, codebook).to(worker.device)
    worker.broadcast(*gan.buffers())
    averaged = copy.deepcopy(gan).requires_grad_(False)
    networks = generator, discriminator = (
        ray.train.torch.prepare_model(gan.generator.to(memory_format=torch.channels_last)),
        ray.train.torch.prepare_model(Discriminator(c, gan.palette.channels).to(memory_format=torch.channels_last)),
    )
    optimizers = both_adams(c, networks)
    parts = {
        "averaged": averaged,
        "painter": gan,  # with palette and template
        "discriminator": raw(discriminator),
        "generator_optimizer": optimizers[0],
        "discriminator_optimizer": optimizers[1],
    }
    course = Course(worker, config, "dcgan", parts, LOSSES)
    real_use = use_of_codes(real_maps(maps), len(codebook))
    pace = Pace(c.epochs * steps, c.batch_size, course.step)
    timer = Timer(worker, config.checkpoint_seconds, course.step)

    while (epoch := len(course.past)) < c.epochs:
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = course.rate * c.learning_rate
        batches = epoch_batches(
            len(maps), c.batch_size, config.seed, epoch, worker.rank, worker.world, first=course.step % steps
        )
        for codes_of, levels, _ in worker.ahead(labelled(maps, numbers) for numbers, _ in batches):
            share = worker.share(len(levels), c.batch_size)
            random = worker.random((config.seed << 20) + course.step * worker.world + worker.rank)
            real = gan.palette.paint(codes_of)  # (B, C, 64, 64)
            with worker.autocast():
                losses = adversarial_step(gan, networks, optimizers, real, levels, course.step, random, share)
            course.add(*losses, share=share)
            average(averaged.generator, raw(generator), c.generator_decay, course.step)
            worker.say(
                lambda: (
                    f"epoch {epoch + 1}/{c.epochs}, generator {losses[0].item():.3f}, "
                    f"discriminator {losses[1].item():.3f}, {pace.describe(course.step)}"
                )
            )
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
                f"epoch {epoch + 1}/{c.epochs}, generator {means['generator_loss']:.3f}, "
                f"discriminator {means['discriminator_loss']:.3f}, {usage['codes_in_use']} codes, "
                f"{pace.describe(course.step)}"
            ),
            always=True,
        )


def both_adams(config: DCGANConfig, networks: Networks) -> list[torch.optim.Adam]:
    """An optimizer for each of the two networks."""
    rates: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, 0.999)}
    return [torch.optim.Adam(network.parameters(), fused=True, **rates) for network in networks]


def adversarial_step(
    gan: DCGAN,
    networks: Networks,
    optimizers: Sequence[torch.optim.Optimizer],
    real: torch.Tensor,
    levels: torch.Tensor,
    step: int,
    random: torch.Generator | None,
    share: float = 1.0,
) -> tuple[torch.Tensor, ...]:
    """Move the discriminator, then the generator, once each; returns `LOSSES`, each ().

    `optimizers` are those of the `networks`. `real` (B, C, 64, 64) is painted, of levels (B,); `step` counts from 0;
    the losses' gradients weigh `share` (see `Worker.share`).
    """
    c = gan.config
    generator, discriminator = networks
    generator_optimizer, discriminator_optimizer = optimizers
    z = torch.randn(len(real), c.latent_dim, generator=random, device=real.device)  # (B, Z)
    colours = gan.on_template(generator(z, levels), z, levels)  # (B, C, 64, 64)
    painted = gan.palette.snap(colours).image  # (B, C, 64, 64)
    penalised = c.gradient_penalty > 0 and step % PENALTY_EVERY == 0
    seen = as_seen(real, c, random).requires_grad_(penalised)
    real_logit = discriminator(seen, levels)
    fake_logit = discriminator(as_seen(painted.detach(), c, random), levels)
    discriminator_loss = adversarial_loss(c.loss, real_logit, fake_logit)
    penalty = gradient_penalty(real_logit, seen) * (c.gradient_penalty * PENALTY_EVERY) if penalised else 0.0
    discriminator_optimizer.zero_grad(set_to_none=True)
    ((discriminator_loss + penalty) * share).backward()
    discriminator_optimizer.step()

    raw(discriminator).requires_grad_(False)
    logit = raw(discriminator)(as_seen(painted, c, random), levels)
    generator_loss = -logit.mean() if c.loss == "hinge" else F.softplus(-logit).mean()
    generator_optimizer.zero_grad(set_to_none=True)
    ((generator_loss + c.commitment * F.mse_loss(colours, painted.detach())) * share).backward()
    generator_optimizer.step()
    raw(discriminator).requires_grad_(True)
    return generator_loss, discriminator_loss, real_logit.mean(), fake_logit.mean()


def adversarial_loss(kind: str, real_logit: torch.Tensor, fake_logit: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss: hinge (Lim & Ye 2017, arXiv:1705.02894) or binary cross-entropy, on logits (B,)."""
    if kind == "hinge":
        return F.relu(1.0 - real_logit).mean() + F.relu(1.0 + fake_logit).mean()
    return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()


def gradient_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """R1: half the mean squared norm of the logits' (B,) gradient at the images (B, C, 64, 64) they came from."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.pow(2).sum((1, 2, 3)).mean()


def untrained(config: TrainConfig, maps: Feed, codebook: torch.Tensor) -> DCGAN:
    """A DCGAN whose palette and template are those of the training split, its generator untrained."""
    codes, levels = all_maps(maps)
    usage = torch.bincount(codes.flatten(), minlength=len(codebook))
    gan = DCGAN(config.dcgan, make_palette(config.dcgan, codebook, usage))
    if gan.template:
        gan.template.measure(codes, levels, gan.palette)
    return gan
