"""The documentation: recipes run, or are understood by the programs they call; links, paths and flags exist."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from oasisgen import storage
from oasisgen.config.renamed import PRESETS, SETTINGS
from oasisgen.data.slices import DataSet
from oasisgen.sampling.formats import write_part_file
from tests.conftest import ROOT, run_job, tiny_flags
from tests.recipes import PAGES, check, commands, inline, recipe, recipes

NIGHT = "root/batches/night-1"  # in the recipes
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
FOREIGN = {  # flags that the pages mention of other programs
    *("--working-dir", "--no-wait", "--dashboard-host", "--block", "--require-hashes"),
    *("--namespace", "--create-namespace", "--version", "--build-arg", "--from", "--generate", "--workers"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_its_program_understands(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    for each in recipes("sh"):
        if each.page == page:
            found = commands(each.text, tmp_path)
            assert found, each
            for command in found:
                check(command, tmp_path)
    for code in inline(page):
        if re.match(r"(make|python) \S", code):
            for command in commands(code, tmp_path):
                check(command, tmp_path)


def test_a_command_that_nobody_understands_is_found(tmp_path: Path) -> None:
    for wrong in (
        "python jobs/train.py full --data d --out o --vqvae.epoch 3",
        "python jobs/none.py",
        "ray job submit --no-wait -- python jobs/pack.py --source s",
        "ray job submitt -- python",
        "make nothing",
        "pip install 'ray[default]==2.0.0'",
        "docker build -f Dockerfile .",
    ):
        (command,) = commands(wrong, tmp_path)
        with pytest.raises(BaseException):  # noqa: B017, PT011 (SystemExit, UsageError, AssertionError, …)
            check(command, tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        commands("curl x", tmp_path)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_of_ours_exists(page: Path) -> None:
    for code in inline(page):
        if re.fullmatch(r"(jobs|oasisgen|k8s|tests|benchmarks|docs|base|components|nightly|iam)/[\w/.-]*", code):
            assert any((folder / code).exists() for folder in (ROOT, page.parent)), code


def test_every_flag_exists(capfd: pytest.CaptureFixture[str]) -> None:
    known = set(FOREIGN)
    jobs = ("phantom",), ("pack",), ("train", "full"), ("generate",), ("evaluate",), ("evaluate", "--batch", "b")
    for job, *preset in jobs:
        with patch.object(sys, "argv", ["job", *preset, "--help"]), pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
        known |= set(FLAG.findall(capfd.readouterr().out))
    assert "--verify" in known
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue  # names those that are gone
        named = {flag.rstrip(".") for code in inline(page) for flag in FLAG.findall(code)}
        assert named <= known, page


def test_the_changelog_lists_every_name_that_changed() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for group, names in SETTINGS.items():
        for old, new in names.items():
            assert f"| `--{group}.{old}` | `--{group}.{new}` |".replace("_", "-") in changelog
    assert all(f"| preset `{old}` | preset `{new}` |" in changelog for old, new in PRESETS.items())


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_the_citation_is_of_this_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format demands
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


@pytest.fixture
def root(batch: Path, s3: str) -> str:
    """A folder of batches on S3 with one batch in it."""
    system, path = storage.resolve(f"{s3}/readme/batches")
    pyarrow.fs.copy_files(str(batch), f"{path}/2026-11-24", destination_filesystem=system)
    return f"{s3}/readme/batches"


def test_a_batch_is_read_with_pandas_duckdb_and_torchvision(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(recipe("README.md", "import duckdb").replace("s3://bucket/batches", root), names)
    assert len(names["slices"]) == len(names["images"]) == 40  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "ssim_train_max" in said
    assert "nearest_case" in said


def test_a_summary_is_compacted(batch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(recipe("docs/generation.md", "import duckdb").replace(NIGHT, str(batch)), {})
    compact, summary = (sorted(pq.read_table(place)["id"].to_pylist()) for place in ("night-1", batch / "summary"))
    assert compact == summary == list(range(40))


def test_a_quarantined_batch_is_not_taken(root: str) -> None:
    names: dict[str, object] = {}
    code = recipe("docs/generation.md", "import json").replace("s3://bucket/batches", root)
    exec(code, names)
    assert (len(names["there"]), names["released"]) == (1, [])  # type: ignore[arg-type]
    manifest = f"{root}/2026-11-24/manifest.json"
    storage.write_text(manifest, storage.read_bytes(manifest).decode().replace("quarantined", "released"))
    exec(code, names)
    assert len(names["released"]) == 1  # type: ignore[arg-type]


def test_a_slice_of_a_data_set_is_read_without_ray(data: DataSet) -> None:
    names: dict[str, np.ndarray] = {}
    exec(recipe("docs/data.md", "import numpy").replace("root/datasets/oasis", data.uri), names)
    assert names["pixels"].shape == (256, 256)
    assert names["pixels"].max() > 100


def test_pairs_of_a_batch_are_read_with_pillow_and_torchvision(batch: Path) -> None:
    names: dict[str, Any] = {}
    exec(recipe("docs/generation.md", "import numpy").replace(NIGHT, str(batch)), names)
    assert names["labels"].shape == (256, 256)
    assert names["labels"].max() < 4
    exec(recipe("docs/generation.md", "from pathlib import Path\n\nimport torch").replace(NIGHT, str(batch)), names)
    assert names["images"].shape == names["labels"].shape == (8, 1, 256, 256)
    assert names["images"].is_floating_point()
    assert names["labels"].max() < 4


def test_pairs_of_a_batch_are_read_with_monai(batch: Path) -> None:
    names: dict[str, Any] = {}
    exec(recipe("docs/generation.md", "from pathlib import Path\n\nfrom monai").replace(NIGHT, str(batch)), names)
    assert names["images"].shape == names["labels"].shape == (8, 1, 256, 256)
    assert names["images"].max() <= 1
    file, pair = names["slices"][0], names["pairs"][0]
    stored = [np.asarray(Image.open(batch / folder / file.parent.name / file.name)) for folder in ("slices", "labels")]
    read = [(pair["image"][0].numpy() * 255).round(), pair["labels"][0].numpy()]
    flipped = [image[:, ::-1] for image in stored]
    assert np.array_equal(read, stored) or np.array_equal(read, flipped)


def test_pairs_of_a_batch_are_read_with_datasets(batch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, Any] = {}
    exec(recipe("docs/generation.md", "from datasets").replace(NIGHT, str(batch)), names)
    pairs = names["pairs"].select(range(2))
    pngs = {
        column: [(batch / file).read_bytes() for file in pairs[of]]
        for column, of in (("png", "file"), ("labels_png", "labels_file"))
    }
    write_part_file(str(tmp_path), 0, "parquet", pa.table({"id": pairs["id"], "level": pairs["level"], **pngs}))
    exec(recipe("docs/generation.md", "# A batch in").replace(NIGHT, str(tmp_path)), names)
    assert len(names["pairs"]) == 2
    for pair, row in zip(pairs, names["pairs"], strict=True):
        for image, again, file in ((pair["image"], row["png"], "file"), (pair["labels"], row["labels"], "labels_file")):
            stored = np.asarray(Image.open(batch / pair[file]))
            assert np.array_equal(np.asarray(image), stored)
            assert np.array_equal(np.asarray(again), stored)


def test_every_block_of_python_is_run() -> None:
    """By the tests above: a new block needs one too."""
    assert len(recipes("python")) == 9


@pytest.mark.slow
def test_the_four_jobs_and_verify_run_as_written(raw: Path, data: DataSet, trained: Path, tmp_path: Path) -> None:
    """Fewer slices and a tiny configuration, whose training is done already: its command returns at once."""
    preset, _, _, _, _, *tiny = tiny_flags(data, "")
    shutil.copytree(trained, tmp_path / "root" / "runs" / "first")
    instead = {"raw": [str(raw)], "full": [preset, *tiny], "1000": ["24"], "20000": ["24"]}
    statuses = []
    four = recipe("README.md", "python jobs/pack")
    night = "python jobs/generate.py --model root/runs/first --out root/batches/2026-11-24"
    verified = recipe("docs/generation.md", night)
    for text in (four, verified.replace("2026-11-24", "night-1")):
        for _, job, *flags in commands(text, tmp_path):
            given = [
                word for flag in flags for word in instead.get(flag, [re.sub("^root/", f"{tmp_path}/root/", flag)])
            ]
            statuses.append(run_job(Path(job).stem, *given).returncode)
    assert statuses == [0, 0, 3, 0, 0, 3, 0]
    assert (tmp_path / "root" / "batches" / "index.html").exists()
