"""Every setting of training: frozen dataclasses, validated where the value lives.

`jobs/train.py` turns these fields into flags (`--vqvae.epochs 5`); the text under a field is its `--help`.
"""

from dataclasses import dataclass, field
from typing import Literal

from oasisgen.config.check import check, check_finite, check_least
from oasisgen.config.data import MOST_SIDE, OASIS, PIXELS_PER_CODE, Shape

PriorName = Literal["dcgan", "masked"]  # the rows of models/priors.py


@dataclass(frozen=True)
class VQVAEConfig:
    """Stage 1: the VQ-VAE, which encodes a slice as a code map, a quarter of its height and width, and decodes it."""

    channels: int = 64
    """Feature channels of encoder and decoder; even."""
    residual_channels: int = 32
    """Channels inside a residual block."""
    residual_blocks: int = 4
    """Residual blocks in the encoder, and as many in the decoder."""
    norm: Literal["none", "batch"] = "none"
    """Normalisation after convolutions. With `batch`, the result depends on the number of workers."""
    codebook_size: int = 512
    """K, the number of codes, from 2 to 65536."""
    code_dim: int = 4
    """D, the dimension of a code."""
    quantizer: Literal["ema", "gradient"] = "ema"
    """How the codebook learns: `ema` by moving averages, with dead codes revived; `gradient` by a codebook loss, as
    in the baseline."""
    codebook_ema_decay: float = 0.99
    """Decay of the codebook's moving averages, per step, between 0 and 1 (quantizer `ema` only)."""
    dead_below: float = 0.03
    """A code whose share of the uses is below this fraction of 1/K is dead, and is replaced by a random encoder output;
    between 0 and 1 (quantizer `ema` only)."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    loss_scale: Literal["variance", "none"] = "variance"
    """`variance`: divide the squared error by the variance of the training pixels, as van den Oord et al. do."""
    ssim_weight: float = 3.0
    """Weight of the loss term 1 - SSIM, which is added to the squared error. 0 disables it."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm. 0 disables clipping."""
    weight_ema_decay: float = 0.999
    """Decay per step of the averaged weights, from 0 to below 1. The averaged weights are scored and saved. 0 disables
    averaging."""
    epochs: int = 20
    """Passes over the training split."""
    batch_size: int = 16
    """Slices per step, over all workers together."""
    crop: int = 128
    """Side of the random square crops to train on, in pixels: a multiple of 4 from 16 to 512. A shorter side of the
    slice is taken whole."""
    learning_rate: float = 4e-3
    """Peak learning rate of Adam."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the run: `cosine` warms up, then falls to zero along a cosine."""
    max_ssim_drop: float = 0.05
    """Largest drop of SSIM below the best epoch, above 0, at most 1. An epoch that drops further is rolled back. 1
    disables the check."""
    validate_slices: int = 256
    """Slices of the validate split to score after every epoch, evenly spaced. 0 scores all of them."""

    def __post_init__(self) -> None:
        check_finite(self, "vqvae.")
        check_least(self, "vqvae", 1, "channels", "residual_channels", "code_dim", "epochs", "batch_size")
        check("vqvae.residual_blocks", self.residual_blocks, self.residual_blocks >= 0, "at least 0")
        check("vqvae.channels", self.channels, self.channels % 2 == 0, "even")
        check("vqvae.codebook_size", self.codebook_size, 2 <= self.codebook_size <= 65536, "from 2 to 65536")
        check("vqvae.codebook_ema_decay", self.codebook_ema_decay, 0 < self.codebook_ema_decay < 1, "between 0 and 1")
        check("vqvae.dead_below", self.dead_below, 0 < self.dead_below < 1, "above 0, below 1")  # all codes start dead
        check_least(self, "vqvae", 0, "commitment", "ssim_weight", "max_grad_norm")
        check("vqvae.max_ssim_drop", self.max_ssim_drop, 0 < self.max_ssim_drop <= 1, "above 0, at most 1")
        check("vqvae.weight_ema_decay", self.weight_ema_decay, 0 <= self.weight_ema_decay < 1, "from 0 to below 1")
        check("vqvae.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        check("vqvae.validate_slices", self.validate_slices, self.validate_slices >= 0, "at least 0")
        crop_fits = self.crop % PIXELS_PER_CODE == 0 and 16 <= self.crop <= MOST_SIDE
        check("vqvae.crop", self.crop, crop_fits, f"a multiple of {PIXELS_PER_CODE} from 16 to {MOST_SIDE}")

    def crop_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the crops to train on, of slices of `image_size`."""
        height, width = image_size
        return min(self.crop, height), min(self.crop, width)


@dataclass(frozen=True)
class DCGANConfig:
    """Stage 2 with `--prior dcgan`: the DCGAN that generates code maps."""

    embedding: Literal["vector", "index"] = "vector"
    """How the networks see a code: `vector`, its codebook vector; `index`, its number as a grey value, as in the
    baseline."""
    conditional: bool = True
    """Condition both networks on the level of the slice."""
    pca_prior: bool = True
    """Add the generator's output to a linear model of the training maps: mean and spread per level, and principal
    components."""
    components: int = 64
    """Principal components of the PCA prior, from 0 to latent_dim; the first entries of z weight them."""
    commitment: float = 1.0
    """Weight of the generator's squared distance to the codes that its output is quantized to. 0 disables it."""
    r1_weight: float = 5.0
    """Weight of the R1 gradient penalty (Mescheder et al. 2018, arXiv:1801.04406). 0 disables it."""
    loss: Literal["hinge", "bce"] = "hinge"
    """Adversarial loss."""
    spectral_norm: bool = True
    """Spectral normalisation of the discriminator (Miyato et al. 2018, arXiv:1802.05957). If off, BatchNorm."""
    latent_dim: int = 100
    """Length of the noise vector z."""
    channels: int = 32
    """Channels at half the height and width of a code map; they double with every further halving."""
    shift: int = 4
    """Largest random shift of the discriminator's input, in codes, from 0 (none) to below half of a code map's
    shorter side: 31 of a slice of 256 x 256 pixels (Zhao et al. 2020, arXiv:2006.10738)."""
    noise: float = 0.1
    """Standard deviation of the noise added to the discriminator's input (Sønderby et al. 2017, arXiv:1610.04490);
    that of embedded codes is 1. 0 disables it."""
    weight_ema_decay: float = 0.99
    """Decay per step of the averaged generator, from 0 to below 1. The averaged one samples. 0 disables averaging."""
    epochs: int = 40
    """Passes over the training split's code maps."""
    batch_size: int = 32
    """Code maps per step, over all workers together."""
    learning_rate: float = 2e-4
    """Learning rate of both Adam optimizers."""
    beta1: float = 0.5
    """Adam's beta1, from 0 to below 1."""
    collapse_threshold: float = 0.25
    """Roll an epoch back if perplexity or variety of generated maps is below this share of the real maps', from 0 to
    below 1. 0 disables the check."""

    def __post_init__(self) -> None:
        check_finite(self, "dcgan.")
        check_least(self, "dcgan", 1, "latent_dim", "channels", "epochs", "batch_size")
        drawable = not self.pca_prior or (self.conditional and self.embedding == "vector")
        check("dcgan.pca_prior", self.pca_prior, drawable, "off unless conditional is on and embedding is vector")
        fits = 0 <= self.components <= self.latent_dim
        check("dcgan.components", self.components, fits, f"from 0 to latent_dim ({self.latent_dim})")
        check_least(self, "dcgan", 0, "commitment", "r1_weight")
        check("dcgan.noise", self.noise, self.noise >= 0, "at least 0")
        check("dcgan.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")
        most = MOST_SIDE // PIXELS_PER_CODE // 2 - 1
        check("dcgan.shift", self.shift, 0 <= self.shift <= most, f"from 0 to {most}")
        for name in ("beta1", "collapse_threshold", "weight_ema_decay"):
            check(f"dcgan.{name}", getattr(self, name), 0 <= getattr(self, name) < 1, "from 0 to below 1")


@dataclass(frozen=True)
class MaskedConfig:
    """Stage 2 with `--prior masked`: a network that fills in masked code maps (MaskGIT)."""

    components: int = 64
    """Principal components of the PCA prior, whose low-rank sample the network is conditioned on."""
    channels: int = 32
    """Channels at the size of a code map; they double with each of the first two halvings."""
    low_rank_logits: bool = False
    """Begin with how likely each code is around the low-rank sample; the network learns what to add."""
    decoding_steps: int = 8
    """Sampling steps per code map; more are slower."""
    temperature: float = 1.1
    """Sampling temperature, above 0: trades fidelity (low) for diversity (high)."""
    redrawn: float = 0.3
    """Share of a map's codes, the least likely ones, drawn again at the end, from 0 to 1. Above 0: two more passes."""
    positions: int = 384
    """Positions that a step predicts per map of 64 x 64 codes, from 1 to 4096; of other sizes, the same share."""
    weight_ema_decay: float = 0.998
    """Decay per step of the averaged network, from 0 to below 1. The averaged one samples. 0 disables averaging."""
    epochs: int = 10
    """Passes over the training split's code maps."""
    batch_size: int = 16
    """Code maps per step, over all workers together."""
    learning_rate: float = 2e-3
    """Peak learning rate of Adam; it falls to zero along a cosine."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm, above 0."""
    collapse_threshold: float = 0.25
    """Roll an epoch back if perplexity or variety of generated maps is below this share of the real maps', from 0 to
    below 1. 0 disables the check."""

    def __post_init__(self) -> None:
        check_finite(self, "masked.")
        check_least(self, "masked", 1, "components", "channels", "decoding_steps", "epochs", "batch_size")
        check("masked.positions", self.positions, 1 <= self.positions <= OASIS.codes, f"from 1 to {OASIS.codes}")
        for name in ("learning_rate", "max_grad_norm", "temperature"):
            check(f"masked.{name}", getattr(self, name), getattr(self, name) > 0, "above 0")
        check("masked.redrawn", self.redrawn, 0 <= self.redrawn <= 1, "from 0 to 1")
        for name in ("weight_ema_decay", "collapse_threshold"):
            check(f"masked.{name}", getattr(self, name), 0 <= getattr(self, name) < 1, "from 0 to below 1")

    def positions_of(self, shape: Shape) -> int:
        """Masked positions that a training step predicts per map of a data set of this shape."""
        return max(1, self.positions * shape.codes // OASIS.codes)


@dataclass(frozen=True)
class FeaturesConfig:
    """The feature network, which embeds slices for FID, KID, precision and recall; the models do not depend on it. All
    runs of a data set with the same settings here use one network."""

    epochs: int = 4
    """Passes over the training split."""
    batch_size: int = 32
    """Slices per step, over all workers together."""
    learning_rate: float = 2e-3
    """Initial learning rate of Adam; it falls linearly to zero."""

    def __post_init__(self) -> None:
        check_finite(self, "features.")
        check_least(self, "features", 1, "epochs", "batch_size")
        check("features.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")


@dataclass(frozen=True)
class LabelsConfig:
    """The label decoder, which turns code maps into label maps; trained if the data set has label maps."""

    channels: int = 64
    """Feature channels; even."""
    dice_weight: float = 1.0
    """Weight of the soft Dice loss, which is added to the cross-entropy. 0 disables it."""
    subjects: int = 0
    """Learn from the label maps of this many training subjects, as if there were no others. 0 uses all."""
    epochs: int = 6
    """Passes over the slices of the training split whose label maps are used."""
    batch_size: int = 16
    """Slices per step, over all workers together."""
    learning_rate: float = 2e-3
    """Peak learning rate of Adam; it falls to zero along a cosine."""
    validate_slices: int = 256
    """Slices of the validate split to score after every epoch, evenly spaced. 0 scores all of them."""

    def __post_init__(self) -> None:
        check_finite(self, "labels.")
        check_least(self, "labels", 1, "epochs", "batch_size")
        check_least(self, "labels", 0, "dice_weight", "subjects", "validate_slices")
        check("labels.channels", self.channels, self.channels > 0 and self.channels % 2 == 0, "even, at least 2")
        check("labels.learning_rate", self.learning_rate, self.learning_rate > 0, "above 0")


@dataclass(frozen=True)
class TrainConfig:
    """Train a model: VQ-VAE, feature network and prior, and a label decoder if the data set has label maps."""

    data: str
    """URI of a packed data set (what jobs/pack.py wrote)."""
    out: str
    """URI of the run's folder, <root>/runs/<name>."""
    seed: int = 0
    """Seed of all randomness but the feature network's, from 0 to 2^32 - 1. The same seed on the same machine gives
    the same model."""
    workers: int = 1
    """Training processes (DDP ranks)."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray reserves for each worker, and threads it computes with; fractions are allowed, 0 is not. A Ray that
    the job starts itself shares all CPUs of the machine among the workers."""
    gpus_per_worker: float = 0.0
    """GPUs for each worker: a whole number, or a fraction of one for a single worker. 0 uses CPUs, for encoding too."""
    min_workers: int = 0
    """Start with this many workers, continue with as few if nodes are lost, and add workers as nodes become available.
    0 waits for all workers."""
    checkpoint_seconds: float = 30.0
    """Longest time between checkpoints, in seconds; a lost node costs at most this much work. Every epoch ends with one
    too."""
    wait_minutes: float = 0.0
    """Minutes to wait for free CPUs and GPUs, while an autoscaler may start nodes. 0 waits a few seconds."""
    feed: Literal["auto", "memory", "stream"] = "auto"
    """`memory` reads slices once, into Ray's object store; `stream` in each epoch; `auto` streams what does not fit."""
    dry_run: bool = False
    """Check storage, data set, free CPUs and GPUs and the run's name, print the plan, and stop."""
    prior: PriorName = "dcgan"
    """What generates code maps: a DCGAN, or a masked network, which is slower and more realistic."""
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    dcgan: DCGANConfig = field(default_factory=DCGANConfig)
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)

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
        """The stages that every run has, in order."""
        return "vqvae", "features", self.prior
