import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from oasisgen import documents
from oasisgen.config.generate import GateConfig
from oasisgen.metrics.fidelity import fidelity
from oasisgen.metrics.label_maps import area_scores
from oasisgen.quality.measures import MEASURES, OF_SLICES, Measure, Score, beside
from oasisgen.quality.nearest import Comparison

DOCS = Path(__file__).parents[2] / "docs" / "measures.md"


@pytest.mark.parametrize("lacking", ["key", "label", "sees"])
def test_a_measure_without_a_label_cannot_exist(lacking: str) -> None:
    row = {"key": "k", "label": "l", "sees": "s", "worse": "higher"}
    with pytest.raises(ValueError, match=f"a measure needs a {lacking}"):
        Measure(**row | {lacking: " "})  # type: ignore[arg-type]


def test_a_value_that_is_not_in_the_table_is_no_score() -> None:
    with pytest.raises(AssertionError, match="not in the table of measures"):
        beside({"fid": 1.0, "lpips": 1.0}, {"fid": 1.0, "lpips": 1.0})


def test_every_measure_that_is_computed_is_in_the_table_and_no_other() -> None:
    features = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    of_sets = {"ms_ssim", "detectability", "label_fit", "suspected_copies", *fidelity(features, features)}
    of_sets |= area_scores(np.ones((2, 1)), np.arange(2), np.ones((2, 1)), np.arange(2)).keys()
    assert MEASURES.keys() == of_sets | set(OF_SLICES)
    assert set(OF_SLICES) <= set(Comparison._fields)


def test_each_tolerance_of_the_gate_belongs_to_one_measure_or_to_the_probe() -> None:
    tolerances = [measure.gate.tolerance for measure in MEASURES.values() if measure.gate]
    tolerances += ["utility"]  # judged by jobs/evaluate.py --batch, after the batch is sealed
    assert sorted(tolerances) == sorted(field.name for field in dataclasses.fields(GateConfig))


def test_a_score_is_read_as_it_was_written() -> None:
    score = Score(0.25, 0.75)
    assert score.to_json() == {"value": 0.25, "floor": 0.75, "distance": -0.5}
    assert documents.parse(json.dumps(score.to_json()).encode(), Score, "a score") == score


def test_what_is_not_finite_beside_its_reference_is_left_out() -> None:
    values = {"fid": 1.0, "kid": math.nan, "ms_ssim": 0.5, "recall": 0.5}
    assert beside(values, {"fid": 2.0, "kid": 0.0, "ms_ssim": np.inf}) == {"fid": Score(1.0, 2.0)}


def test_the_docs_list_the_measures_of_the_table() -> None:
    section = DOCS.read_text().split("## Of a batch")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert rows[0] == ["measure", "name in reports", "what it sees", "worse is", "judged with"]
    assert rows[2:] == [
        [
            f"`{key}`",
            measure.label,
            measure.sees.replace("copy_ratio", "`copy_ratio`"),
            measure.worse,
            f"`--gate.{measure.gate.tolerance.replace('_', '-')}`" if measure.gate else "",
        ]
        for key, measure in MEASURES.items()
    ]
