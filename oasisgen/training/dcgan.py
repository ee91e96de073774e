"""Stage 2: the loop that trains the DCGAN on code maps."""

import copy
from collections.abc import Sequence
from typing import Any

import ray.train.torch
import torch
import torch.nn.functional as F

from oasisgen.config.data import Shape
from oasisgen.config.train import DCGANConfig, TrainConfig
from oasisgen.data.feed import Feed, Source
from oasisgen.models.codes import make_embedding
from oasisgen.models.dcgan import DCGAN, Discriminator, discriminator_input
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
from oasisgen.training.stage import StageState, non_finite
from oasisgen.training.worker import Worker, unwrap

LOSSES = ("generator_loss", "discriminator_loss", "real_logit", "fake_logit")  # of a step
Networks = tuple[torch.nn.Module, torch.nn.Module]  # the generator of a DCGAN, and its discriminator; or both in DDP
PENALTY_EVERY = 4  # steps; the penalty then weighs as much more (Karras et al. 2020, arXiv:1912.04958)


def train_dcgan(config: TrainConfig, worker: Worker, codes: Source, codebook: torch.Tensor, shape: Shape) -> None:
    """Train one rank; resumes from the latest checkpoint. Raises Diverged after too many rollbacks.

    `codebook` is (K, D). The averaged generator, not the last one, is what a bundle samples with.
    """
    c = config.dcgan
    maps = codes.load()

    gan = initial_dcgan(config, maps, codebook, shape).to(worker.device)
    worker.broadcast(*gan.buffers())
    averaged = copy.deepcopy(gan).requires_grad_(False)
    networks = generator, discriminator = (
        ray.train.torch.prepare_model(gan.generator.to(memory_format=torch.channels_last)),
        ray.train.torch.prepare_model(discriminator_of(gan, shape).to(memory_format=torch.channels_last)),
    )
    optimizers = both_adams(c, networks)
    parts = {
        "averaged": averaged,
        "gan": gan,  # with its embedding and PCA prior
        "discriminator": unwrap(discriminator),
        "generator_optimizer": optimizers[0],
        "discriminator_optimizer": optimizers[1],
    }
    state = StageState(worker, config, "dcgan", maps, parts, LOSSES)
    all_levels = maps.column("level")
    watched = watched_levels(all_levels)
    real_use = map_statistics(real_maps(maps, all_levels, watched), len(codebook))

    while state.epoch < c.epochs:
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = state.lr_factor * c.learning_rate
        for codes_of, levels, _ in worker.ahead(labelled(maps, numbers) for numbers, _ in state.batches()):
            share, random = state.share(len(levels)), state.random()
            real = gan.embedding.embed(codes_of)  # (B, C, h, w)
            with worker.autocast():
                losses = adversarial_step(gan, networks, optimizers, real, levels, state.step, random, share)
            average(averaged.generator, unwrap(generator), c.weight_ema_decay, state.step)
            state.end_step(*losses, share=share, line=lambda: adversarial_line(*losses[:2]))

        means = state.mean_losses()
        if state.roll_back_if(non_finite(means)):
            continue
        usage = map_statistics(generated_maps(averaged, watched, config.seed, worker), len(codebook))
        if state.roll_back_if(collapsed(usage, real_use, c.collapse_threshold)):
            continue
        line = adversarial_line(means["generator_loss"], means["discriminator_loss"])
        state.end_epoch({**means, **usage}, f"{line}, {usage['codes_in_use']} codes")


def discriminator_of(gan: DCGAN, shape: Shape) -> Discriminator:
    """An untrained discriminator of a DCGAN's maps."""
    return Discriminator(gan.config, gan.embedding.channels, shape)


def adversarial_line(generator_loss: torch.Tensor | float, discriminator_loss: torch.Tensor | float) -> str:
    """The two losses, for a line of the log."""
    return f"generator {float(generator_loss):.3f}, discriminator {float(discriminator_loss):.3f}"


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
    """One step of the discriminator, then one of the generator; returns `LOSSES`, each ().

    `optimizers` are those of the `networks`. `real` (B, C, h, w) are embedded maps of levels (B,); `step` counts
    from 0; the losses' gradients weigh `share` (see `StageState.share`).
    """
    c = gan.config
    generator, discriminator = networks
    generator_optimizer, discriminator_optimizer = optimizers
    z = torch.randn(len(real), c.latent_dim, generator=random, device=real.device)  # (B, Z)
    unquantized = gan.apply_pca_prior(generator(z, levels), z, levels)  # (B, C, h, w)
    fake = gan.embedding.quantize(unquantized).image  # (B, C, h, w)
    penalised = c.r1_weight > 0 and step % PENALTY_EVERY == 0
    seen = discriminator_input(real, c, random).requires_grad_(penalised)
    real_logit = discriminator(seen, levels)
    fake_logit = discriminator(discriminator_input(fake.detach(), c, random), levels)
    discriminator_loss = adversarial_loss(c.loss, real_logit, fake_logit)
    penalty = r1_penalty(real_logit, seen) * (c.r1_weight * PENALTY_EVERY) if penalised else 0.0
    discriminator_optimizer.zero_grad(set_to_none=True)
    ((discriminator_loss + penalty) * share).backward()
    discriminator_optimizer.step()

    unwrap(discriminator).requires_grad_(False)
    logit = unwrap(discriminator)(discriminator_input(fake, c, random), levels)
    generator_loss = -logit.mean() if c.loss == "hinge" else F.softplus(-logit).mean()
    generator_optimizer.zero_grad(set_to_none=True)
    ((generator_loss + c.commitment * F.mse_loss(unquantized, fake.detach())) * share).backward()
    generator_optimizer.step()
    unwrap(discriminator).requires_grad_(True)
    return generator_loss, discriminator_loss, real_logit.mean(), fake_logit.mean()


def adversarial_loss(kind: str, real_logit: torch.Tensor, fake_logit: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss: hinge (Lim & Ye 2017, arXiv:1705.02894) or binary cross-entropy, on logits (B,)."""
    if kind == "hinge":
        return F.relu(1.0 - real_logit).mean() + F.relu(1.0 + fake_logit).mean()
    return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()


def r1_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """R1: half the mean squared norm of the logits' (B,) gradient at the images (B, C, h, w) they came from."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.pow(2).sum((1, 2, 3)).mean()


def initial_dcgan(config: TrainConfig, maps: Feed, codebook: torch.Tensor, shape: Shape) -> DCGAN:
    """A DCGAN with the embedding and PCA prior of the training split, its generator untrained."""
    codes = all_maps(maps)
    usage = usage_of(codes, len(codebook))
    gan = DCGAN(config.dcgan, make_embedding(config.dcgan, codebook, usage), shape)
    if gan.pca_prior:
        gan.pca_prior.fit(codes, gan.embedding)
    return gan
