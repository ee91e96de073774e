import dataclasses
import pkgutil
from typing import get_args

from oasisgen.config.train import PriorName, TrainConfig
from oasisgen.models.priors import PRIORS


def test_every_prior_that_can_be_asked_for_has_a_row() -> None:
    assert set(PRIORS) == set(get_args(PriorName))


def test_a_row_names_the_prior_s_settings_and_a_training_loop_that_exists() -> None:
    groups = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    for name, prior in PRIORS.items():
        assert groups[name] is prior.config
        assert callable(pkgutil.resolve_name(prior.loop))
