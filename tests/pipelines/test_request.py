"""A batch is of one model and one version of the program, from its first slice to its last."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from oasisgen import cluster
from oasisgen.config.folder import write_settings
from oasisgen.config.generate import GenerateConfig
from oasisgen.errors import UserError
from oasisgen.models.bundle import read_bundle
from oasisgen.pipelines import generate as batches
from oasisgen.pipelines.generate import generate, make_request


def test_a_model_that_is_replaced_under_a_batch_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "model"
    shutil.copytree(trained / "model", bundle)

    def replace_and_claim(*arguments: object) -> None:
        config = json.loads((bundle / "config.json").read_text())
        (bundle / "config.json").write_text(json.dumps(config | {"seed": 99}))
        write_settings(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(batches, "write_settings", replace_and_claim)
    with pytest.raises((UserError, ray.exceptions.RayError)) as raised:
        generate(GenerateConfig(str(bundle), str(tmp_path / "b"), count=16, measure=False))
    error = raised.value
    line = cluster._cause(error) if isinstance(error, ray.exceptions.RayError) else str(error)
    assert f"bundle {bundle} was replaced" in line
    assert not list((tmp_path / "b").rglob("*.png"))


@pytest.mark.parametrize("version", ["0.0.1", None])
def test_a_batch_that_another_version_began_is_not_gone_on_with(
    trained: Path, batch: Path, tmp_path: Path, version: str | None
) -> None:
    shutil.copytree(batch, tmp_path / "b")
    written = tmp_path / "b" / "config.json"
    request = json.loads(written.read_text())
    written.write_text(json.dumps(request | {"software": version and request["software"] | {"oasisgen": version}}))
    config = GenerateConfig(str(trained), str(tmp_path / "b"), count=40, base_seed=5)
    made = generate(config)
    assert made  # a finished batch is what it is
    assert made.slices == 40
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"was started with .*: continue with the same versions, or use another --out"):
        generate(config)


def test_a_batch_says_of_how_many_subjects_the_label_decoder_has_seen_label_maps(trained: Path, tmp_path: Path) -> None:
    bundle = read_bundle(str(trained))
    assert bundle.described.labels
    few = replace(bundle, described=replace(bundle.described, labels=bundle.described.labels | {"subjects": 7}))
    for model, labels, said in ((bundle, True, 0), (few, True, 7), (few, False, 0)):
        config = GenerateConfig(str(trained), str(tmp_path), count=16, labels=labels)
        assert make_request(config, model, [0], None, None).label_subjects == said
