"""What a probe says, from how well each arm's segmenter finds each class."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.evaluate import utility_lines
from oasisgen import storage
from oasisgen.config.generate import GateConfig
from oasisgen.config.probe import ProbeConfig
from oasisgen.errors import UserError
from oasisgen.metrics.bootstrap import Interval
from oasisgen.models.scores import MeasuredData
from oasisgen.pipelines.probe import draw
from oasisgen.quality.history import FinishedBatch
from oasisgen.quality.segmentation import table_of
from oasisgen.quality.utility import (
    Utility,
    added_by_synthetic,
    class_scores,
    evaluation_of,
    find_utility,
    judge_utility,
    utility_of,
)
from oasisgen.reports.index import render_index
from oasisgen.reports.utility import about_few, write_utility_report
from oasisgen.sampling import manifest
from tests.conftest import requested
from tests.reports.test_index import SUMMARY, write_batch

CLASSES = "none", "CSF", "bone"


def scores(*both: int, found: int = 100) -> pa.Table:
    """Of two slices of each of three subjects: CSF of 100 pixels in the first, of which a subject's `both` are found;
    no bone."""
    pixels = np.zeros((6, 2, 3), np.int64)
    pixels[::2, 0] = [[100, found, right] for right in both]
    distances = np.where(pixels[:, :, 2] > 0, 2.0, np.nan)
    names = {
        "case": np.repeat(["a", "b", "c"], 2),
        "subject": np.repeat(["a", "b", "c"], 2),
        "level": np.tile([1, 2], 3),
    }
    return table_of(names, CLASSES, pixels, distances)


def of_bone(*found: int) -> pa.Table:
    """What is `found` of bone in a subject, though none has any."""
    pixels = np.array([[[0, pixels, 0]] for pixels in found], np.int64)
    names = {"case": np.array(["a", "b", "c"]), "subject": np.array(["a", "b", "c"]), "level": np.array([1, 1, 1])}
    return table_of(names, ("none", "bone"), pixels, np.full((3, 1), np.nan))


def utility(**changed: Any) -> Utility:
    usual: dict[str, Any] = {"verdict": "released", "reasons": (), "batch": "batches/night", "manifest": "m"}
    usual |= {"data": MeasuredData("oasis", "f"), "subjects": 10, "held_out_slices": 6, "held_out_subjects": 3}
    usual |= {"steps": 20, "batch_size": 16, "seed": 0, "version": "0", "finished": "", "seconds": 1}
    usual |= {"utility": {"CSF": Interval(0.8, 0.7, 0.9), "<bone>": Interval(0.95, 0.9, 1.0)}, "added": {}, "arms": {}}
    return Utility(**(usual | changed))


def test_a_class_is_scored_by_subject_and_one_that_no_slice_has_is_left_out() -> None:
    found = class_scores(scores(50, 100, 0))
    assert set(found) == {"CSF"}
    assert found["CSF"].dice.mean == pytest.approx(0.5)
    assert (found["CSF"].dice.low, found["CSF"].dice.high) == (0.0, 1.0)
    assert found["CSF"].hausdorff95 == Interval(2.0, 2.0, 2.0)
    assert found["CSF"].missed == 0
    assert class_scores(scores(0, 0, 0, found=0))["CSF"].hausdorff95 is None
    assert class_scores(scores(0, 0, 0, found=0))["CSF"].missed == 3


def test_utility_is_a_ratio_of_dice_and_what_is_added_a_difference() -> None:
    real, synthetic = scores(80, 80, 100), scores(40, 40, 50)
    ratio = utility_of(real, synthetic)
    assert ratio["CSF"].mean == pytest.approx(0.5)
    assert ratio["CSF"].high - ratio["CSF"].low == pytest.approx(0)
    assert list(ratio) == ["CSF"]
    assert added_by_synthetic(real, synthetic)["CSF"].mean == pytest.approx(0.8667 - 0.4333, abs=1e-4)
    with pytest.raises(UserError, match=r"finds no CSF: train longer \(--segmenter.epochs\)"):
        utility_of(scores(0, 0, 0), synthetic)
    in_one = utility_of(scores(0, 0, 50), synthetic)["CSF"]  # a resample without that subject has no ratio
    assert in_one.mean == pytest.approx(130 / 50)
    assert 0.9 < in_one.low < in_one.high < 9


def test_a_class_that_no_scored_slice_has_has_no_utility() -> None:
    """Though both segmenters found it, in the same subject or not."""
    both = pa.concat_tables([scores(80, 80, 100), of_bone(0, 5, 0)])
    assert list(utility_of(both, pa.concat_tables([scores(40, 40, 50), of_bone(0, 7, 0)]))) == ["CSF"]
    assert list(utility_of(both, pa.concat_tables([scores(40, 40, 50), of_bone(5, 0, 0)]))) == ["CSF"]
    unknown, known = (render_index([FinishedBatch("night", SUMMARY, probed)]) for probed in (utility(utility={}), None))
    assert unknown == known  # no utility is shown


def test_a_batch_is_judged_by_the_least_utility_that_was_asked_for() -> None:
    (reason,) = judge_utility(utility().utility, 0.9, ["CSF", "<bone>"])
    assert reason == "of little use to train a segmenter: utility for CSF is 0.800, must be at least 0.900"
    _, unknown = judge_utility(utility().utility, 0.9, ["CSF", "<bone>", "skin"])
    assert unknown.startswith("utility for skin could not be measured: no held-out slice that was scored has it")
    assert judge_utility(utility().utility, 0.0, ["CSF", "<bone>", "skin"]) == []
    asked = requested(gate=GateConfig(utility=0.9)).to_json()
    assert asked["gate"]["utility"] == 0.9
    assert "utility" not in requested().to_json()["gate"]  # as in older versions
    assert "label_subjects" not in requested().to_json()
    assert requested(label_subjects=10).to_json()["label_subjects"] == 10


def test_the_probe_of_a_batch_is_found_unless_the_batch_is_another_by_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches, name = f"{tmp_path}/batches", "night"
    write_batch(batches, name, 1)
    batch = f"{batches}/{name}"
    out = evaluation_of(batch)
    assert out == f"{tmp_path}/evaluations/night"
    assert evaluation_of(f"{tmp_path}/night") is None
    assert evaluation_of("/batches/night") == "/evaluations/night"
    assert evaluation_of("s3://bucket/batches/night") == "s3://bucket/evaluations/night"
    assert evaluation_of("s3://batches/night") is None
    assert find_utility(batch) is None
    known = utility(manifest=manifest.digest(batch))
    storage.write_text(f"{out}/utility.json", json.dumps(dataclasses.asdict(known)))
    assert find_utility(batch) == known
    storage.write_text(f"{batch}/manifest.json", "{ }")
    assert find_utility(batch) is None
    assert capsys.readouterr().out == ""
    storage.write_text(f"{out}/utility.json", "{}")
    assert find_utility(batch) is None
    assert "the utility probe of" in capsys.readouterr().out


def test_a_probe_below_the_gate_quarantines_a_batch_on_the_page_of_all_batches() -> None:
    failed = utility(verdict="quarantined", reasons=("of little use",))
    judged = [FinishedBatch("a", SUMMARY), FinishedBatch("b", SUMMARY, utility()), FinishedBatch("c", SUMMARY, failed)]
    assert [batch.verdict for batch in judged] == ["released", "released", "quarantined"]
    page = render_index(judged).decode()
    assert page.count("0.800 (1.000)") == 2
    assert page.count("<td>of little use</td>") == 1


def test_the_report_has_every_figure(tmp_path: Path) -> None:
    write_utility_report(str(tmp_path), utility(added={"few-both": {"CSF": Interval(0.1234, 0.0, 0.2)}}))
    page = (tmp_path / "report" / "index.html").read_text()
    assert "0.800 (0.700 to 0.900)" in page
    assert "real pairs of 10 subjects" in page
    assert "0.123 (0.000 to 0.200)" in page
    assert "&lt;bone&gt;" in page


def test_a_case_of_few_labels_whose_label_decoder_knows_more_says_so(tmp_path: Path) -> None:
    added = {"few-both": {"CSF": Interval(0.1, 0.0, 0.2)}}
    for known, said in (
        (0, "has learned from those of all training subjects, so the synthetic pairs bring their labels in"),
        (20, "has learned from those of 20 training subjects, so the synthetic pairs bring their labels in"),
        (10, "The label decoder, too, has learned from label maps of 10 subjects alone"),
        (5, "The label decoder, too, has learned from label maps of 5 subjects alone"),
    ):
        probed = utility(label_subjects=known, added=added)
        assert probed.leaks == (known in (0, 20))
        assert said in about_few(probed)
        assert any(said in line for line in utility_lines(probed))
        write_utility_report(str(tmp_path), probed)
        assert said in (tmp_path / "report" / "index.html").read_text()
    assert not utility(subjects=0).leaks


def test_pairs_are_drawn_at_random() -> None:
    rows = draw(100, 10, seed=0)
    assert len(set(rows.tolist())) == 10
    assert rows.tolist() == sorted(rows.tolist())
    assert rows.tolist() != draw(100, 10, seed=1).tolist()
    assert draw(3, 10, 0).tolist() == [0, 1, 2]


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"pairs is 8: must be at least segmenter.batch_size \(16\)"):
        ProbeConfig("batch", pairs=8)
    with pytest.raises(ValueError, match=r"segmenter.batch_size is 16: must be a multiple of workers \(3\)"):
        ProbeConfig("batch", workers=3)
