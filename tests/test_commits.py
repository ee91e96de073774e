"""A job whose folder another one took over while it was silent writes no file that says "complete"."""

import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from oasisgen import cluster, documents, lock
from oasisgen.config.data import OASIS
from oasisgen.config.folder import write_settings
from oasisgen.config.train import DCGANConfig, FeaturesConfig, VQVAEConfig
from oasisgen.data.phantom import write_phantoms
from oasisgen.data.slices import DataSet
from oasisgen.errors import UserError
from oasisgen.lock import LockLost
from oasisgen.models.bundle import BundleSettings, TrainedOn, read_bundle, weights_of, write_bundle
from oasisgen.models.features import FeatureNetwork
from oasisgen.models.priors import make_prior
from oasisgen.models.vqvae import VQVAE
from oasisgen.pipelines.evaluate import evaluate_bundle, write_evaluation
from oasisgen.pipelines.generate import make_batch
from oasisgen.pipelines.slices import BatchJob
from oasisgen.quality.reconstruction import Evaluation
from oasisgen.reports.run import write_run_report
from oasisgen.sampling.request import BatchRequest
from oasisgen.training.encode import require_same_codes
from tests.conftest import METRICS, SCORES, lost_lock

MEASURED = Evaluation(SCORES, pa.table({"case": ["001"], "ssim": [0.5]}), np.ones(3, np.int64))
VQ, PRIOR = VQVAEConfig(channels=8, residual_channels=4), DCGANConfig(channels=8)
DATA = TrainedOn("d", "f")
SETTINGS = BundleSettings(seed=0, data=DATA, vqvae=VQ, prior="dcgan", prior_settings=PRIOR, features=FeaturesConfig())


def bundle_of_a_run(out: str) -> None:
    vqvae = VQVAE(VQ)
    prior = make_prior("dcgan", asdict(PRIOR), vqvae.quantizer.codebook.detach(), OASIS)
    write_bundle(
        f"{out}/model", SETTINGS, vqvae, prior, weights_of(FeatureNetwork(OASIS)), METRICS, lost_lock(out).write
    )


def report_of_a_run(out: str) -> None:
    slices = [(np.zeros((256, 256), np.uint8),) * 2] * 32
    stages: dict[str, Any] = {"vqvae": [], "features": [], "dcgan": []}
    write_run_report(out, SETTINGS, "m", MEASURED, stages, slices[:8], slices, lost_lock(out).commit)


def codes_of_a_prior(out: str) -> None:
    require_same_codes(f"{out}/dcgan", "digest", lost_lock(out).write)


def evaluation(out: str) -> None:
    write_evaluation(out, "m", MEASURED, lost_lock(out).commit)


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (bundle_of_a_run, "model/config.json"),
        (report_of_a_run, "report/index.html"),
        (codes_of_a_prior, "dcgan/codes.json"),
        (evaluation, "evaluation.json"),
    ],
)
def test_of_a_run_and_of_an_evaluation(write: Any, file: str, tmp_path: Path) -> None:
    with pytest.raises(LockLost, match="another job took it over while this one was silent"):
        write(str(tmp_path))
    assert not (tmp_path / file).exists()


def test_of_a_batch(trained: Path, batch: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(batch, tmp_path / "b"))
    for name in ("manifest.json", "summary.json"):  # all parts are made, the rest is not
        (out / name).unlink()
    request = documents.read(str(out / "config.json"), BatchRequest)
    job = BatchJob(str(out), request, read_bundle(str(trained)), cluster.Actors())
    with pytest.raises(LockLost):
        make_batch(job, None, lambda: FeatureNetwork(OASIS), lost_lock(str(out)))
    assert not (out / "summary.json").exists()
    assert not (out / "manifest.json").exists()


def test_an_evaluation_and_virtual_subjects_are_of_one_job_at_a_time(
    trained: Path, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lock, "READ_SECONDS", 0.15)
    model = read_bundle(str(trained)).digest
    measured = {"model": model, "data_fingerprint": data.fingerprint, "split": "validate"}
    subjects = {"train": 1}
    for name, job, settings in (
        ("e", partial(evaluate_bundle, str(trained), data, "validate"), measured),
        ("p", partial(write_phantoms, splits=subjects, seed=0), {"virtual_subjects": subjects, "seed": 0}),
    ):
        out = str(tmp_path / name)
        write_settings(out, settings)
        with lock.lock(out), pytest.raises(UserError, match=r"is being worked on by .*: wait for it"):
            job(out=out)
