"""jobs/evaluate.py --batch: what a batch is worth to someone who trains a segmenter."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oasisgen.config.folder import write_settings
from oasisgen.config.probe import ProbeConfig
from oasisgen.data.slices import DataSet
from oasisgen.errors import InvalidFile, UserError
from oasisgen.pipelines.probe import open_batch, open_real, probe, require_same_kind, settings_of
from tests.conftest import digests, run_job

FLAGS = "--pairs 32 --subjects 1 --validate-slices 16 --segmenter.channels 8 --segmenter.batch-size 8"
FLAGS += " --segmenter.epochs 10 --segmenter.learning-rate 0.01"


def changed(data: DataSet, **fields: Any) -> DataSet:
    """A data set whose description says something else."""
    return DataSet(data.uri, replace(data.description, **fields))


@pytest.mark.slow
def test_a_batch_is_probed_once_and_an_interrupted_probe_continues(batch: Path, data: DataSet, tmp_path: Path) -> None:
    before, out = digests(batch, "*"), tmp_path / "probe"
    flags = ["--batch", str(batch), "--out", str(out), "--quarantined", *FLAGS.split()]
    done = run_job("evaluate", *flags)
    assert done.returncode == 0, done.stderr
    assert "utility for CSF: " in done.stdout
    assert "not a case of labels of 1 subject alone: the label decoder has learned from those of all" in done.stdout
    assert "real pairs of 1 subject, and synthetic pairs: synthetic pairs add to Dice CSF " in done.stdout
    first = json.loads((out / "utility.json").read_text())
    assert list(first["arms"]) == ["real", "synthetic", "both", "few", "few-both"]
    assert [(arm["real"], arm["synthetic"]) for arm in first["arms"].values()] == [
        (32, 0),
        (0, 32),
        (32, 32),
        (32, 0),
        (32, 32),
    ]
    assert first["steps"] == 40
    assert (first["subjects"], first["label_subjects"]) == (1, 0)
    assert set(first["utility"]) == {"CSF", "grey matter", "white matter"}
    assert first["arms"]["real"]["classes"]["white matter"]["dice"]["mean"] > 0.3
    assert "Is the batch of use?" in (out / "report" / "index.html").read_text()

    (out / "utility.json").unlink()
    shutil.rmtree(out / "few-both")  # as if the job had been killed during the last arm
    again = run_job("evaluate", *flags)
    assert again.returncode == 0, again.stderr
    assert "arm few-both" in again.stdout
    assert "arm few:" not in again.stdout
    second = json.loads((out / "utility.json").read_text())
    for name, ratio in second["added"]["few-both"].items():
        assert ratio["mean"] == pytest.approx(first["added"]["few-both"][name]["mean"], abs=1e-3)
    assert digests(batch, "*") == before


def test_a_batch_that_cannot_be_probed_is_refused_in_one_line(batch: Path, data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is quarantined: probe it nevertheless with --quarantined"):
        open_batch(str(batch), quarantined=False)
    with pytest.raises(UserError, match="no finished batch at"):
        open_batch(str(tmp_path), quarantined=False)
    found = open_batch(str(batch), quarantined=True)
    with pytest.raises(UserError, match="has no label maps: there is nothing to compare"):
        require_same_kind(found, changed(data, label_classes=()))
    with pytest.raises(UserError, match=r"have the classes .*, those of data set .*: name the data set"):
        require_same_kind(found, changed(data, label_classes=data.label_classes[:2]))
    with pytest.raises(UserError, match=r"have 256 x 256 pixels, those of data set .* 256 x 128"):
        require_same_kind(found, changed(data, image_size=(256, 128)))
    require_same_kind(found, data)
    plain = tmp_path / "plain"
    shutil.copytree(batch, plain)
    manifest = json.loads((plain / "manifest.json").read_text())
    del manifest["label_classes"]
    (plain / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="has no label maps: generate one with a model"):
        open_batch(str(plain), quarantined=True)


def test_the_rows_of_a_probed_batch_are_those_that_its_manifest_lists(batch: Path, tmp_path: Path) -> None:
    out = tmp_path / "night"
    shutil.copytree(batch, out)
    part = out / "summary" / "part-00000.parquet"
    shutil.copy(part, part.with_name("part-00009.parquet"))
    assert open_batch(str(out), quarantined=True).slices["id"].to_pylist() == list(range(40))
    (out / "summary.json").unlink()
    with pytest.raises(UserError, match=r"has no summary.json: name the data set with real pairs by --data"):
        open_real(ProbeConfig(str(out)), str(out))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InvalidFile, match=r"part-00000.parquet is missing or changed since the batch was finished"):
        open_batch(str(out), quarantined=True)
    part.unlink()
    with pytest.raises(InvalidFile, match=r"part-00000.parquet is missing or changed since the batch was finished"):
        open_batch(str(out), quarantined=True)


def test_a_probe_that_another_version_began_is_not_gone_on_with(batch: Path, data: DataSet, tmp_path: Path) -> None:
    config = ProbeConfig(str(batch), out=str(tmp_path / "out"), quarantined=True, subjects=1)
    settings = settings_of(config, open_batch(config.batch, quarantined=True), data)
    write_settings(str(tmp_path / "out"), settings | {"software": {"oasisgen": "0.0.1", "torch": "2.0"}})
    with pytest.raises(UserError, match=r"was started with oasisgen 0.0.1, torch 2.0, this is .*: continue with"):
        probe(config)
