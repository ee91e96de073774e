"""The presets of the training job: `demo`, `baseline`, `full`."""

import tyro

from oasisgen.config.train import DCGANConfig, FeaturesConfig, LabelsConfig, MaskedConfig, TrainConfig, VQVAEConfig

BASELINE = TrainConfig(
    data=tyro.MISSING,
    out=tyro.MISSING,
    vqvae=VQVAEConfig(
        channels=256,
        residual_channels=256,
        residual_blocks=2,
        norm="batch",
        code_dim=256,
        quantizer="gradient",
        commitment=1.0,
        loss_scale="none",
        ssim_weight=0.0,
        max_grad_norm=0.0,
        weight_ema_decay=0.0,
        max_ssim_drop=1.0,
        batch_size=32,
        crop=256,
        learning_rate=3e-4,
        schedule="constant",
    ),
    dcgan=DCGANConfig(
        embedding="index",
        conditional=False,
        pca_prior=False,
        components=0,
        commitment=0.0,
        r1_weight=0.0,
        loss="bce",
        spectral_norm=False,
        channels=64,
        shift=0,
        noise=0.0,
        weight_ema_decay=0.0,
        collapse_threshold=0.0,
    ),
)


FULL = TrainConfig(
    data=tyro.MISSING,
    out=tyro.MISSING,
    prior="masked",
    vqvae=VQVAEConfig(epochs=40),
    dcgan=DCGANConfig(channels=64, epochs=200),
)


# For the virtual subjects of `make demo`. Each network but that for features gets one epoch, in small batches, which
# make more steps of it. What the prior does not learn in that time, the components and the logits around the low-rank
# sample know from the beginning.
DEMO = TrainConfig(
    data=tyro.MISSING,
    out=tyro.MISSING,
    prior="masked",
    vqvae=VQVAEConfig(residual_blocks=2, batch_size=8, epochs=1, validate_slices=64),
    dcgan=DCGANConfig(epochs=4),
    masked=MaskedConfig(components=160, channels=16, low_rank_logits=True, redrawn=0.0, batch_size=8, epochs=1),
    features=FeaturesConfig(epochs=2),
    labels=LabelsConfig(channels=32, batch_size=4, learning_rate=6e-3, epochs=1),
)


PRESETS = {
    "demo": ("`full` made small enough for two CPU cores.", DEMO),
    "baseline": ("The model and training of the student report that this project started from.", BASELINE),
    "full": ("The best configuration we know, for a GPU.", FULL),
}
