"""The one table of priors: what a prior is made of, and where it is trained."""

from typing import Any

import torch

from oasisgen.config.train import DCGANConfig, MaskedConfig
from oasisgen.models.codes import VectorEmbedding, make_embedding
from oasisgen.models.dcgan import DCGAN
from oasisgen.models.masked import MaskedPrior

Prior = DCGAN | MaskedPrior


def make_prior(kind: str, config: dict[str, Any], codebook: torch.Tensor) -> Prior:
    """The prior of stage 2 that `kind` names, over a codebook (K, D), its weights yet to be loaded."""
    usage = torch.ones(len(codebook))
    if kind == "dcgan":
        return DCGAN(DCGANConfig(**config), make_embedding(DCGANConfig(**config), codebook, usage))
    return MaskedPrior(MaskedConfig(**config), VectorEmbedding(codebook, usage))
