"""What another job finishes while this one waits for the lock is left as it is."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from oasisgen.config.generate import GenerateConfig
from oasisgen.config.pack import PackConfig
from oasisgen.config.probe import ProbeConfig
from oasisgen.data import pack as packing
from oasisgen.data.slices import DataSet
from oasisgen.lock import Lock, lock
from oasisgen.pipelines import evaluate, generate, probe, train
from tests.conftest import digests, tiny
from tests.quality.test_utility import utility


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[ModuleType, str, str, Path, str], None]:
    """`folder` without its last file, which is there once `module` holds the lock; its function `work` must not run."""

    def arrange(module: ModuleType, locks: str, work: str, folder: Path, last: str) -> None:
        kept = (folder / last).rename(tmp_path / "kept")

        @contextmanager
        def after_another_job(uri: str) -> Iterator[Lock]:
            kept.rename(folder / last)
            with lock(uri) as held:
                yield held

        def never(*arguments: object) -> None:
            pytest.fail(f"{work} ran again")

        monkeypatch.setattr(module, locks, after_another_job)
        monkeypatch.setattr(module, work, never)

    return arrange


Meanwhile = Callable[[ModuleType, str, str, Path, str], None]


def test_a_data_set(data: DataSet, raw: Path, tmp_path: Path, meanwhile: Meanwhile) -> None:
    out = tmp_path / "data"
    shutil.copytree(data.uri, out)
    meanwhile(packing, "lock", "write_data_set", out, "dataset.json")
    before = digests(out, "*.parquet")
    assert packing.pack(PackConfig(str(raw), str(out))) == data.description
    assert digests(out, "*.parquet") == before


def test_a_batch(trained: Path, batch: Path, tmp_path: Path, meanwhile: Meanwhile) -> None:
    out = tmp_path / "night"
    shutil.copytree(batch, out)
    meanwhile(generate, "lock", "make_batch", out, "manifest.json")
    found = generate.generate(GenerateConfig(str(trained), str(out), count=40, base_seed=5))
    assert found
    assert found.slices == 40


def test_a_run(data: DataSet, trained: Path, tmp_path: Path, meanwhile: Meanwhile) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    meanwhile(train, "lock", "train_stages", out, "report/index.html")
    assert train.train(tiny(data, out)) == str(out / "model")


def test_an_evaluation(data: DataSet, trained: Path, tmp_path: Path, meanwhile: Meanwhile) -> None:
    scores = evaluate.evaluate_bundle(str(trained), data, "validate", str(tmp_path / "out"))
    meanwhile(evaluate, "lock", "evaluate", tmp_path / "out", "evaluation.json")
    assert evaluate.evaluate_bundle(str(trained), data, "validate", str(tmp_path / "out")) == scores


def test_a_probe(batch: Path, tmp_path: Path, meanwhile: Meanwhile) -> None:
    config = ProbeConfig(str(batch), out=str(tmp_path / "out"), quarantined=True, subjects=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "utility.json").write_text(json.dumps(asdict(utility())))
    meanwhile(probe, "lock", "train_arms", tmp_path / "out", "utility.json")
    assert probe.probe(config) == (str(tmp_path / "out"), utility())
