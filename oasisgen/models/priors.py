"""The one table of priors: what each is made of, how it is trained, and what its report shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from oasisgen.config.data import Shape
from oasisgen.config.train import DCGANConfig, MaskedConfig, PriorName
from oasisgen.models.dcgan import DCGAN
from oasisgen.models.masked import MaskedPrior

Prior = DCGAN | MaskedPrior


@dataclass(frozen=True)
class PriorKind:
    """A row of the table."""

    label: str  # in headings and on the model card
    config: type[Any]  # the type of its settings, which are the field of TrainConfig with the prior's name
    model: type[DCGAN] | type[MaskedPrior]
    # The training loop as module:function, which `pkgutil.resolve_name` imports. Not the function itself: training
    # lies above models, and no import runs upward.
    loop: str
    held_out: bool  # the loop also takes the code maps of the validate split, as `held_out`
    panels: dict[str, list[str]]  # curves in a training report: title of a panel -> metrics of an epoch


PRIORS: Mapping[PriorName, PriorKind] = {
    "dcgan": PriorKind(
        label="DCGAN",
        config=DCGANConfig,
        model=DCGAN,
        loop="oasisgen.training.dcgan:train_dcgan",
        held_out=False,
        panels={"losses": ["generator_loss", "discriminator_loss"], "mean logit": ["real_logit", "fake_logit"]},
    ),
    "masked": PriorKind(
        label="masked prior",
        config=MaskedConfig,
        model=MaskedPrior,
        loop="oasisgen.training.masked:train_masked",
        held_out=True,
        panels={"loss": ["loss", "held_out_loss"]},
    ),
}


def make_prior(kind: PriorName, settings: Mapping[str, Any], codebook: torch.Tensor, shape: Shape) -> Prior:
    """An untrained prior of a `kind` over a codebook (K, D), for slices of a `shape`.

    `settings` are the fields of its configuration. The caller loads the weights.
    """
    row = PRIORS[kind]
    return row.model.from_codebook(row.config(**settings), codebook, torch.ones(len(codebook)), shape)
