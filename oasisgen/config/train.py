"""Every setting of training: frozen dataclasses, validated where the value lives.

`jobs/train.py` turns these fields into flags (`--vqvae.epochs 5`); the text under a field is its `--help`.
"""

from dataclasses import dataclass, field
from typing import Literal

from oasisgen.config.check import check, check_finite, check_least
from oasisgen.config.data import CODE_SIZE, IMAGE_SIZE

PriorName = Literal["dcgan", "masked"]  # the rows of models/priors.py


@dataclass(frozen=True)
class VQVAEConfig:
    """Stage 1: the VQ-VAE that turns a slice into a 64 x 64 map of codes and back."""

    channels: int = 64
    """Feature channels of encoder and decoder."""
    residual_channels: int = 32
    """Channels inside a residual block."""
    residual_blocks: int = 4
    """Residual blocks in the encoder, and as many in the decoder."""
    norm: Literal["none", "batch"] = "none"
    """Normalisation after convolutions. `batch` depends on the batch: ranks then differ from one big batch."""
    codebook_size: int = 512
    """K, codes in the codebook."""
    code_dim: int = 4
    """D, numbers per code."""
    quantizer: Literal["ema", "gradient"] = "ema"
    """How the codebook learns: moving averages with dead codes revived, or the seed's codebook loss."""
    codebook_ema_decay: float = 0.99
    """Decay of the codebook's moving averages, per step (quantizer `ema`)."""
    dead_below: float = 0.03
    """A code used less than this share of an even share is dead and starts again at a random encoder output."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    loss_scale: Literal["variance", "none"] = "variance"
    """Divide the squared error by the variance of the training pixels, as van den Oord et al. do, or not."""
    ssim_weight: float = 3.0
    """Weight of 1 - SSIM beside the squared error."""
    max_grad_norm: float = 1.0
    """Longest gradient of a step; longer ones are scaled down to it. 0: as they come."""
    weight_ema_decay: float = 0.999
    """Decay per step of the averaged weights, which are the ones that are scored and kept; 0 keeps the last ones."""
    epochs: int = 20
    """Passes over the training split."""
    batch_size: int = 16
    """Slices per step, over all workers."""
    crop: int = 128
    """Side of the random square crop that a step sees, in pixels, a multiple of 4; 256 is the whole slice."""
    learning_rate: float = 4e-3
    """Peak learning rate of Adam."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the run: warm up and fall to zero along a cosine, or stay."""
    max_ssim_drop: float = 0.05
    """SSIM by which an epoch may end behind the best one; one that falls further is undone. 1: however far."""
    validate_slices: int = 256
    """Slices of the validate split, evenly spaced, that are scored after every epoch; 0 scores all of them."""

    def __post_init__(self) -> None:
        check_finite(self, "vqvae.")
        check_least(self, "vqvae", 1, "channels", "residual_channels", "code_dim", "epochs", "batch_size")
        check("vqvae.residual_blocks", self.residual_blocks, self.residual_blocks >= 0, "at least 0")
        check("vqvae.channels", self.channels, self.channels % 2 == 0, "even")
        check("vqvae.codebook_size", self.codebook_size, 2 <= self.codebook_size <= 65536, "from 2 to 65536")
        check("vqvae.codebook_ema_decay", self.codebook_ema_decay, 0 < self.codebook_ema_decay < 1, "between 0 and 1")
        check("vqvae.dead_below", self.dead_below, 0 < self.dead_below < 1, "above 0, below 1")  # all start dead
        check_least(self, "vqvae", 0, "commitment", "ssim_weight", "max_grad_norm")
        check("vqvae.max_ssim_drop", self.max_ssim_drop, 0 < self.max_ssim_drop <= 1, "above 0, at most 1")
        check("vqvae.weight_ema_decay", self.weight_ema_decay, 0 <= self.weight_ema_decay < 1, "from 0 to below 1")
        check("vqvae.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        check("vqvae.validate_slices", self.validate_slices, self.validate_slices >= 0, "at least 0")
        crop_fits = self.crop % 4 == 0 and 16 <= self.crop <= IMAGE_SIZE
        check("vqvae.crop", self.crop, crop_fits, f"a multiple of 4 from 16 to {IMAGE_SIZE}")


@dataclass(frozen=True)
class DCGANConfig:
    """Stage 2: the DCGAN that paints new code maps."""

    embedding: Literal["vector", "index"] = "vector"
    """What generator and discriminator see of a code: its vector, or (the seed) its index as a grey value."""
    conditional: bool = True
    """Tell both networks the level of the slice."""
    pca_prior: bool = True
    """Paint on what the training maps have in common (mean, spread, principal components), or from nothing."""
    components: int = 64
    """Principal components of the template; the first numbers of z weigh them."""
    commitment: float = 1.0
    """Weight of the generator's distance to the codes it is snapped to; keeps it where the gradient means something."""
    r1_weight: float = 5.0
    """Weight of R1, the discriminator's squared gradient on real maps (Mescheder et al. 2018, arXiv:1801.04406)."""
    loss: Literal["hinge", "bce"] = "hinge"
    """Adversarial loss."""
    spectral_norm: bool = True
    """Spectral normalisation of the discriminator (Miyato et al. 2018); off, BatchNorm as in the first DCGAN."""
    latent_dim: int = 100
    """Length of the noise vector z."""
    channels: int = 32
    """Channels at 32 x 32; every halving of the size doubles them."""
    shift: int = 4
    """Most codes by which maps are shifted for the discriminator (Zhao et al. 2020, arXiv:2006.10738); 0: none."""
    noise: float = 0.1
    """Deviation of the noise that the discriminator sees; colours have 1 (Sønderby et al. 2017, arXiv:1610.04490)."""
    weight_ema_decay: float = 0.99
    """Decay per step of the averaged generator, which is the one that samples; 0 samples from the last one."""
    epochs: int = 40
    """Passes over the training split's code maps."""
    batch_size: int = 32
    """Code maps per step, over all workers."""
    learning_rate: float = 2e-4
    """Learning rate of both Adams."""
    beta1: float = 0.5
    """Adam's first decay."""
    collapse_threshold: float = 0.25
    """Share of the real maps' perplexity and variety below which the generator counts as collapsed; 0: never."""

    def __post_init__(self) -> None:
        check_finite(self, "dcgan.")
        check_least(self, "dcgan", 1, "latent_dim", "channels", "epochs", "batch_size")
        drawable = not self.pca_prior or (self.conditional and self.embedding == "vector")
        check("dcgan.pca_prior", self.pca_prior, drawable, "off unless conditional is on and palette is vector")
        fits = 0 <= self.components <= self.latent_dim
        check("dcgan.components", self.components, fits, f"from 0 to latent_dim ({self.latent_dim})")
        check_least(self, "dcgan", 0, "commitment", "r1_weight")
        check("dcgan.noise", self.noise, self.noise >= 0, "at least 0")
        check("dcgan.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        check("dcgan.beta1", self.beta1, 0 <= self.beta1 < 1, "from 0 to below 1")
        check(
            "dcgan.collapse_threshold", self.collapse_threshold, 0 <= self.collapse_threshold < 1, "from 0 to below 1"
        )
        check("dcgan.shift", self.shift, 0 <= self.shift < CODE_SIZE // 2, f"from 0 to {CODE_SIZE // 2 - 1}")
        check("dcgan.weight_ema_decay", self.weight_ema_decay, 0 <= self.weight_ema_decay < 1, "from 0 to below 1")


@dataclass(frozen=True)
class MaskedConfig:
    """Stage 2 with `--prior masked`: a network that fills in masked code maps."""

    components: int = 64
    """Principal components of the maps; noise weighs them to the sketch that a map is filled in on."""
    channels: int = 32
    """Channels at 64 x 64; the first two halvings of the size double them."""
    decoding_steps: int = 12
    """Rounds in which a map is filled in."""
    temperature: float = 0.9
    """What logits are divided by before a code is drawn: below 1 rare codes become rarer, and frayed rims with them."""
    positions: int = 384
    """Masked places of a map that a step of training asks about."""
    weight_ema_decay: float = 0.998
    """Decay per step of the averaged network, which is the one that samples; 0 samples from the last one."""
    epochs: int = 10
    """Passes over the training split's code maps."""
    batch_size: int = 16
    """Code maps per step, over all workers."""
    learning_rate: float = 2e-3
    """Peak learning rate of Adam; it falls to zero along a cosine."""
    max_grad_norm: float = 1.0
    """Longest gradient of a step; longer ones are scaled down to it."""
    collapse_threshold: float = 0.25
    """Share of the real maps' perplexity and variety below which the prior counts as collapsed; 0: never."""

    def __post_init__(self) -> None:
        check_finite(self, "masked.")
        check_least(self, "masked", 1, "components", "channels", "decoding_steps", "epochs", "batch_size")
        check("masked.positions", self.positions, 1 <= self.positions <= CODE_SIZE**2, f"from 1 to {CODE_SIZE**2}")
        for name in ("learning_rate", "max_grad_norm", "temperature"):
            check(f"masked.{name}", getattr(self, name), getattr(self, name) > 0, "above 0")
        check("masked.weight_ema_decay", self.weight_ema_decay, 0 <= self.weight_ema_decay < 1, "from 0 to below 1")
        check(
            "masked.collapse_threshold", self.collapse_threshold, 0 <= self.collapse_threshold < 1, "from 0 to below 1"
        )


@dataclass(frozen=True)
class FeaturesConfig:
    """The feature network, with which quality is measured; the models do not depend on it."""

    epochs: int = 4
    """Passes over the training split."""
    batch_size: int = 32
    """Slices per step, over all workers."""
    learning_rate: float = 2e-3
    """Learning rate of Adam at the start; it falls to zero along a line."""

    def __post_init__(self) -> None:
        check_finite(self, "features.")
        check_least(self, "features", 1, "epochs", "batch_size")
        check("features.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")


@dataclass(frozen=True)
class TrainConfig:
    """The training job."""

    data: str
    """URI of a packed data set (what jobs/pack.py wrote)."""
    out: str
    """URI of the run's folder, <root>/runs/<name>."""
    seed: int = 0
    """Seed of everything random; the same seed on the same machine gives the same model."""
    workers: int = 1
    """Training processes (DDP ranks)."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for each of them, which computes with as many threads; fractions are fine, 0 is not.
    On a Ray that the job starts for itself, the workers share all CPUs of the machine."""
    gpus_per_worker: float = 0.0
    """GPUs for each of them, a whole number; one worker may have a part of one. 0: CPUs, for encoding too."""
    min_workers: int = 0
    """Start, and go on when nodes are lost, with as few as these, and with more as they come; 0 waits for all."""
    checkpoint_seconds: float = 30.0
    """Save at least this often, in seconds: the most work that a lost node costs. An epoch's end always saves."""
    wait_minutes: float = 0.0
    """Minutes to wait for room on the cluster, which an autoscaler sees and starts nodes for; 0: some seconds."""
    dry_run: bool = False
    """Check storage, data set, room on the cluster and the run's name, print the plan, and stop."""
    prior: PriorName = "dcgan"
    """What paints new code maps: a DCGAN, or a network that fills in masked ones, slower and more like real ones."""
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    dcgan: DCGANConfig = field(default_factory=DCGANConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)

    def __post_init__(self) -> None:
        check_finite(self)
        check("workers", self.workers, self.workers >= 1, "at least 1")
        check("cpus_per_worker", self.cpus_per_worker, self.cpus_per_worker > 0, "above 0")
        gpus = self.gpus_per_worker
        fits = gpus >= 0 and (gpus % 1 == 0 or (gpus < 1 and self.workers == 1))  # NCCL has one rank on a GPU
        check("gpus_per_worker", gpus, fits, "a whole number, or below 1 for a single worker")
        fits = 0 <= self.min_workers <= self.workers
        check("min_workers", self.min_workers, fits, f"from 0 to workers ({self.workers})")
        check("checkpoint_seconds", self.checkpoint_seconds, self.checkpoint_seconds > 0, "above 0")
        check("wait_minutes", self.wait_minutes, self.wait_minutes >= 0, "at least 0")
        check("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        for stage in self.stages:
            batch = getattr(self, stage).batch_size
            check(f"{stage}.batch_size", batch, batch % self.workers == 0, f"a multiple of workers ({self.workers})")

    @property
    def stages(self) -> tuple[str, ...]:
        """Of training, in their order."""
        return "vqvae", "features", self.prior
