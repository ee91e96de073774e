import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from oasisgen.config.generate import GenerateConfig
from oasisgen.data.description import Split
from oasisgen.data.slices import DataSet
from oasisgen.errors import UserError
from oasisgen.models.bundle import read_bundle
from oasisgen.pipelines.generate import generate, requested_levels
from oasisgen.sampling.levels import require_levels
from tests.conftest import described


def with_levels(train: tuple[int, ...] | None, held_out: tuple[int, ...] | None) -> DataSet:
    """A data set whose splits have these levels."""
    splits = {"train": Split(1, {"001": 1}, train), "validate": Split(1, {"002": 1}, held_out)}
    return DataSet("root/datasets/some", described(splits=splits))


def test_levels_that_the_data_set_lacks_are_refused_with_those_it_has() -> None:
    data = with_levels((8, 9, 10, 12), (8, 9, 10, 11))
    require_levels([8, 9, 10], data)
    for wanted, lacking in (([0, 1, 2], "0-2"), ([8, 9, 11, 12], "11-12")):
        with pytest.raises(UserError, match=f"has no slices of level {lacking} to compare with: give --levels 8-10"):
            require_levels(wanted, data)
    require_levels([0, 31], with_levels(None, None))  # of an older version, which did not name them


def test_levels_that_the_model_was_not_trained_on_are_refused_without_measures_too(
    trained: Path, data: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = json.loads((Path(data.uri) / "dataset.json").read_text())
    written["splits"]["train"]["levels"] = list(range(8, 16))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(written))
    model = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    bundle = json.loads((model / "config.json").read_text())
    trained_levels = bundle["data"].pop("trained_levels")  # bundles of older versions do not list them
    assert trained_levels == list(range(32))
    bundle["data"]["uri"] = str(tmp_path / "data")
    (model / "config.json").write_text(json.dumps(bundle))

    wanted = GenerateConfig(str(model), str(tmp_path / "batch"), count=4, measure=False)
    for some, lacking in (
        ({"levels": "0-7"}, "0-7"),
        ({"levels": "6-9"}, "6-7"),
        ({"ids": "7,8", "count": 1000}, "7"),
        ({}, "0-7,16-31"),
    ):
        with pytest.raises(UserError, match=f"trained on no slice of level {lacking}: give --levels 8-15"):
            generate(replace(wanted, **some))
    elsewhere = replace(wanted, levels="0-7", measure=True, data=data.uri)  # which has them all
    with pytest.raises(UserError, match="trained on no slice of level 0-7"):
        generate(elsewhere)
    assert not (tmp_path / "batch").exists()

    generate(replace(wanted, levels="8-15", dry_run=True))
    assert "cannot check" not in capsys.readouterr().out
    (tmp_path / "data" / "dataset.json").unlink()
    generate(replace(wanted, levels="0-7", dry_run=True))
    said = capsys.readouterr().out
    assert f"trained on all requested levels: no packed data set at {tmp_path / 'data'}" in said

    bundle["data"]["trained_levels"] = list(range(8, 16))
    (model / "config.json").write_text(json.dumps(bundle))
    with pytest.raises(UserError, match="trained on no slice of level 6-7: give --levels 8-15"):
        generate(replace(wanted, levels="6-9"))
    assert requested_levels(wanted, read_bundle(str(model))) == list(range(8, 16))
