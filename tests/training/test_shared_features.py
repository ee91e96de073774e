"""One feature network per data set, without Ray: the stage that trains it is replaced."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from oasisgen import storage
from oasisgen.config.data import OASIS
from oasisgen.config.pack import PackConfig
from oasisgen.config.presets import FULL
from oasisgen.config.train import FeaturesConfig
from oasisgen.data.feed import Stored
from oasisgen.data.pack import pack
from oasisgen.data.slices import FEATURES, DataSet
from oasisgen.errors import InvalidFile, UserError
from oasisgen.models.bundle import weights_of
from oasisgen.models.features import FeatureNetwork
from oasisgen.training import shared_features
from oasisgen.training.features import PretextHeads
from oasisgen.training.history import Epoch
from oasisgen.training.shared_features import PretextEpoch, TrainedFeatures, features_of, find, planned, publish
from tests.conftest import described

SETTINGS = FeaturesConfig()


def data_set(place: str, fingerprint: str = "f") -> DataSet:
    return DataSet(f"{place}/data", described(fingerprint=fingerprint))


def network(seed: int) -> TrainedFeatures:
    torch.manual_seed(seed)
    return TrainedFeatures(weights_of(FeatureNetwork(OASIS)), (PretextEpoch(1, 3.0, 0.1, 0.02),))


def training(calls: list[int], meanwhile: Callable[[], object] = lambda: None) -> Callable[..., dict[str, Any]]:
    """A stage that notes the seed it is trained with, and something that happens in the meantime."""

    def complete(stage: Any, config: Any, lock: Any) -> dict[str, Any]:
        calls.append(config.seed)
        meanwhile()
        torch.manual_seed(config.seed)
        losses = {"level_loss": 3.0, "damage_loss": 0.1, "anatomy_loss": 0.02}
        return {"model": PretextHeads(OASIS).state_dict(), "history": [Epoch(1, 6, losses, 80.0, 0).to_json()]}

    return complete


def run(data: DataSet, seed: int = 0) -> TrainedFeatures:
    return features_of(data, replace(FULL, data=data.uri, out="run", seed=seed), Stored(()), None)


def test_the_second_run_of_a_data_set_has_the_network_of_the_first(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, calls = data_set(place), list[int]()
    monkeypatch.setattr(shared_features, "complete", training(calls))
    assert "would be kept in" in planned(data, SETTINGS)
    first = run(data, seed=3)
    assert calls == [shared_features.SEED]  # whatever the run's
    capsys.readouterr()
    assert run(data, seed=4) == first
    assert calls == [shared_features.SEED]
    (said,) = capsys.readouterr().out.splitlines()
    assert f"network {first.digest[:12]} was trained before" in said
    assert f"{first.digest[:12]}, trained before" in planned(data, SETTINGS)


def test_a_data_set_that_was_packed_again_and_other_settings_have_networks_of_their_own(place: str) -> None:
    data, again, other = data_set(place), data_set(place, "g"), replace(SETTINGS, epochs=9)
    publish(data, SETTINGS, network(1))
    assert find(again, SETTINGS) is None
    assert find(data, other) is None
    publish(again, SETTINGS, network(2))
    publish(data, other, network(3))
    kept = [find(data, SETTINGS), find(again, SETTINGS), find(data, other)]
    assert kept == [network(seed) for seed in (1, 2, 3)]


def test_a_network_of_another_recipe_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_set(str(tmp_path))
    publish(data, SETTINGS, network(1))
    monkeypatch.setattr(shared_features, "RECIPE", shared_features.RECIPE + 1)
    assert find(data, SETTINGS) is None


def test_of_two_runs_at_the_same_time_both_use_the_network_that_was_published_first(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, calls = data_set(place), list[int]()
    theirs = network(1)
    monkeypatch.setattr(shared_features, "complete", training(calls, lambda: publish(data, SETTINGS, theirs)))
    assert run(data) == theirs
    assert calls == [shared_features.SEED]
    assert "ours is dropped" in capsys.readouterr().out
    assert len(storage.list_names(storage.join(data.uri, FEATURES))) == 2  # ours is not left there


def test_equal_networks_of_two_runs_are_one(place: str) -> None:
    data = data_set(place)
    for _ in range(2):
        assert publish(data, SETTINGS, network(1)) == network(1)
    assert find(data, SETTINGS) == network(1)


def test_a_data_set_that_cannot_be_written_to_is_trained_on_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, calls = data_set(str(tmp_path)), list[int]()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FEATURES).write_text("in the way")  # of root too, whom no permissions stop
    monkeypatch.setattr(shared_features, "complete", training(calls))
    assert "would be this run's alone, because it cannot be kept: " in planned(data, SETTINGS)
    assert run(data) == run(data)
    assert len(calls) == 2
    for line in capsys.readouterr().out.splitlines():
        assert re.search(r"this run alone uses network \w{12}, which cannot be kept: .*a file is in the way", line)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "is truncated or changed"),
    ],
    ids=["missing", "truncated"],
)
def test_a_damaged_network_is_one_line(damage: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    data = data_set(str(tmp_path))
    publish(data, SETTINGS, network(1))
    (weights,) = (tmp_path / "data" / FEATURES).glob("*.safetensors")
    damage(weights)
    with pytest.raises(
        InvalidFile, match=rf"^feature network \S+\.safetensors {says}: remove (\S+\.json) to "
    ) as raised:
        find(data, SETTINGS)
    name = re.search(r"remove (\S+) to", str(raised.value))
    assert name
    Path(name[1]).unlink()  # as the line says
    assert find(data, SETTINGS) is None
    assert publish(data, SETTINGS, network(1)) == find(data, SETTINGS) == network(1)


def test_weights_of_another_kind_of_network_are_one_line(tmp_path: Path) -> None:
    data = data_set(str(tmp_path))
    publish(data, SETTINGS, TrainedFeatures(weights_of(torch.nn.Linear(2, 2)), ()))
    with pytest.raises(InvalidFile, match="has other tensors than this version's network"):
        find(data, SETTINGS)


def test_packing_knows_a_feature_network_and_nothing_else_of_that_name(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    publish(DataSet(str(out), described()), SETTINGS, network(1))
    assert pack(PackConfig(str(raw), str(out), dry_run=True)) is None
    for path in (out / FEATURES).iterdir():
        path.unlink()
    (out / FEATURES / "thoughts.txt").write_text("somebody's")
    with pytest.raises(UserError, match=r"holds files that oasisgen did not write \(features\)"):
        pack(PackConfig(str(raw), str(out), dry_run=True))
