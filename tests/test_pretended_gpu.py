"""What a GPU would meet, on a machine without one: PyTorch's FakeTensorMode runs the forward passes on a pretended
CUDA device. It knows shapes and devices, no values: whatever needs a value on the host, or another device, is seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oasisgen.config.data import OASIS
from oasisgen.config.presets import BASELINE, FULL
from oasisgen.config.train import PriorName, TrainConfig
from oasisgen.data.pixels import to_unit
from oasisgen.metrics.ssim import _window as ssim_window
from oasisgen.models.codes import CodeEmbedding, VectorEmbedding, make_embedding
from oasisgen.models.dcgan import DCGAN, Discriminator
from oasisgen.models.features import FeatureNetwork
from oasisgen.models.labels import LabelDecoder
from oasisgen.models.masked import MaskedPrior
from oasisgen.models.priors import make_prior
from oasisgen.models.vqvae import VQVAE
from oasisgen.precision import repeatable
from oasisgen.quality.reconstruction import Reconstructor
from oasisgen.sampling.sample import Sampler
from oasisgen.training import dcgan, masked, vqvae
from oasisgen.training.averaging import average
from oasisgen.training.features import PretextHeads, augment, pretext_losses

CUDA = torch.device("cuda")
BATCH = 16


class Watch(TorchDispatchMode):
    """Lets every operation pass that stays on one device. FakeTensorMode lets none pass that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.inexact: set[str] = set()  # ran where results may differ from call to call
        self.watching = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Whatever happens once, before the first step."""
        self.watching = False
        yield
        self.watching = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor)]
        devices = {each.device.type for each in tensors if each.dim()}  # a number's tensor travels with the call
        assert len(devices) <= 1 or not self.watching, f"{func} goes from one device to another: {devices}"
        self.seen.add(func.name())
        tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        if tf32 or not torch.are_deterministic_algorithms_enabled():
            self.inexact.add(func.name())
        return out


@contextmanager
def gpu() -> Iterator[Watch]:
    """New tensors and networks are on a pretended GPU, and are watched."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), CUDA, Watch() as watch:
            yield watch
    finally:
        ssim_window.cache_clear()  # what it keeps is no tensor outside


def sampler_of(config: TrainConfig, prior: PriorName) -> Sampler:
    """A sampler as it is on a GPU, its weights untrained."""
    vqvae = VQVAE(config.vqvae)
    sampler = Sampler.__new__(Sampler)  # `__init__` reads a bundle, and asks CUDA for its name
    sampler.device, sampler.mixed, sampler.vqvae = CUDA, False, vqvae.eval()
    sampler.labels = LabelDecoder(config.labels, config.vqvae.code_dim, 4).eval()
    sampler.prior = make_prior(prior, vars(getattr(config, prior)), vqvae.quantizer.codebook.detach(), OASIS).eval()
    return sampler


@pytest.mark.parametrize(("config", "prior"), [(BASELINE, "dcgan"), (FULL, "dcgan"), (FULL, "masked")])
def test_a_slice_is_made_on_the_gpu_alone_by_kernels_that_repeat_themselves(
    config: TrainConfig, prior: PriorName
) -> None:
    with gpu() as watch:
        sampler = sampler_of(config, prior)
        noise, levels = torch.randn(16, sampler.prior.noise_size), torch.arange(16)
        watch.inexact.clear()
        images, codes_in_use, labels = sampler.make(noise, levels)
    assert labels is not None
    assert (labels.shape, labels.dtype, labels.device.type) == ((16, 256, 256), torch.uint8, "cuda")
    assert (images.shape, images.dtype, images.device.type) == ((16, 256, 256), torch.uint8, "cuda")
    assert (codes_in_use.shape, codes_in_use.device.type) == ((16,), "cuda")
    assert "aten::convolution" in watch.seen
    assert not watch.inexact & {"aten::convolution", "aten::cumsum", "aten::scatter.src", "aten::addmm", "aten::bmm"}


@pytest.fixture
def without_backward(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Autograd's backward pass needs a real CUDA device: it is left out, and with it what optimizers move."""
    monkeypatch.setattr(torch.Tensor, "backward", lambda _: None)
    with torch.no_grad():
        yield


def palette_of(config: TrainConfig) -> CodeEmbedding:
    codebook = torch.randn(config.vqvae.codebook_size, config.vqvae.code_dim)
    return make_embedding(config.dcgan, codebook, torch.ones(config.vqvae.codebook_size))


@pytest.mark.parametrize("config", [BASELINE, FULL])
def test_a_step_of_the_vqvae_neither_leaves_the_gpu_nor_makes_the_host_wait(
    config: TrainConfig, without_backward: None
) -> None:
    c = config.vqvae
    with gpu() as watch:
        with watch.paused(), torch.device("cpu"):
            ssim_window(c.crop, torch.device("cuda", 0))  # is made and copied once for all steps
        model = VQVAE(c)
        averaged = VQVAE(c)
        x = to_unit(torch.zeros(BATCH, c.crop, c.crop, dtype=torch.uint8).unsqueeze(1))
        losses = vqvae.losses_of(model, x, 1.0, c, None)
        model.quantizer.step()
        average(averaged, model, c.weight_ema_decay, 0)
    assert [(loss.shape, loss.device.type) for loss in losses] == [((), "cuda")] * len(vqvae.LOSSES)


@pytest.mark.parametrize("config", [BASELINE, FULL])
def test_a_step_of_the_dcgan_neither_leaves_the_gpu_nor_makes_the_host_wait(
    config: TrainConfig, without_backward: None
) -> None:
    with gpu():
        gan = DCGAN(config.dcgan, palette_of(config), OASIS)
        networks = gan.generator, Discriminator(config.dcgan, gan.embedding.channels, OASIS)
        real = gan.embedding.embed(torch.zeros(BATCH, 64, 64, dtype=torch.int64))
        levels = torch.arange(BATCH)
        losses = dcgan.adversarial_step(gan, networks, dcgan.both_adams(config.dcgan, networks), real, levels, 1, None)
    assert [(loss.shape, loss.device.type) for loss in losses] == [((), "cuda")] * len(dcgan.LOSSES)


def test_a_step_of_the_masked_prior_neither_leaves_the_gpu_nor_makes_the_host_wait(without_backward: None) -> None:
    with gpu():
        embedding = palette_of(FULL)
        assert isinstance(embedding, VectorEmbedding)
        prior = MaskedPrior(FULL.masked, embedding, OASIS)
        real, levels = torch.zeros(BATCH, 64, 64, dtype=torch.int64), torch.arange(BATCH)
        low_rank = prior.low_rank_sample(torch.randn(BATCH, FULL.masked.components), levels)
        loss = masked.loss_of(prior.predictor, prior, real, low_rank, levels, None)
        torch.nn.utils.clip_grad_norm_(prior.predictor.parameters(), 1.0)
    assert (loss.shape, loss.device.type) == ((), "cuda")


def test_a_step_of_the_feature_network_neither_leaves_the_gpu_nor_makes_the_host_wait(without_backward: None) -> None:
    with gpu():
        model, levels = PretextHeads(OASIS), torch.arange(BATCH)
        batch = augment(torch.zeros(BATCH, 256, 256, dtype=torch.uint8), None)
        predicted: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = model(batch.x)
        losses = pretext_losses(*predicted, levels, batch)
    assert (losses.shape, losses.device.type) == ((3,), "cuda")


@pytest.mark.parametrize("config", [BASELINE, FULL])
def test_evaluation_encodes_and_reconstructs_on_the_gpu_alone(config: TrainConfig) -> None:
    with gpu():
        actor = Reconstructor.__new__(Reconstructor)
        actor.device, actor.mixed, actor.vqvae = CUDA, True, VQVAE(config.vqvae).eval()
        actor.codebook_size = config.vqvae.codebook_size
        images = torch.zeros(BATCH, 256, 256, dtype=torch.uint8)
        written, counts = actor.reconstruct(images)
        described = FeatureNetwork(OASIS).eval()(to_unit(images[:, None]))
    assert (written.shape, written.dtype) == (images.shape, torch.uint8)
    assert counts.shape == (BATCH, config.vqvae.codebook_size)
    assert described.shape == (BATCH, FeatureNetwork.num_features)


def test_what_makes_the_host_wait_is_seen() -> None:
    with gpu():
        x, codes = torch.randn(8), torch.zeros(8, dtype=torch.int64)
        for waits in (
            lambda: x.sum().item(),
            lambda: x[x > 0],
            lambda: torch.unique(codes),
            lambda: torch.bincount(codes, minlength=4),
            lambda: "yes" if x.sum() > 0 else "no",
        ):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                waits()
        for leaves in (
            lambda: x.cpu(),
            lambda: x + torch.ones(8, device="cpu"),
            lambda: torch.ones(8, device="cpu").to(CUDA),
        ):
            with pytest.raises((AssertionError, RuntimeError), match="device"):
                leaves()


def test_the_switches_for_repeatable_kernels_are_set_back() -> None:
    def switches() -> tuple[object, ...]:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        return (
            torch.are_deterministic_algorithms_enabled(),
            cudnn.allow_tf32,
            cudnn.deterministic,
            cudnn.benchmark,
            cuda.matmul.allow_tf32,
        )

    before = switches()
    with repeatable(torch.device("cpu")):
        assert switches() == before
    with repeatable(CUDA):
        assert switches() == (True, False, True, False, False)
    assert switches() == before
