"""Whatever lies in place of a file of ours: one line, no traceback."""

import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import evaluate, generate
from oasisgen import cli, documents, lock, storage
from oasisgen.config.folder import SOFTWARE, require_same_settings, require_same_software
from oasisgen.config.generate import GateConfig
from oasisgen.config.train import FeaturesConfig
from oasisgen.data.slices import DataSet, open_data_set
from oasisgen.errors import InvalidFile, UserError
from oasisgen.models.bundle import read_bundle
from oasisgen.models.scores import ReconstructionScores
from oasisgen.pipelines.generate import seed_of
from oasisgen.progress import say
from oasisgen.quality import gate, history
from oasisgen.quality import summary as summaries
from oasisgen.quality import utility as utilities
from oasisgen.quality.measures import Score
from oasisgen.quality.summary import BatchSummary, Seconds
from oasisgen.reports import index
from oasisgen.reports.utility import write_utility_report
from oasisgen.sampling import manifest as manifests
from oasisgen.sampling.manifest import BatchPart, Manifest
from oasisgen.sampling.verify import _check, verify
from oasisgen.training import checkpoint, encode
from oasisgen.training.shared_features import PretextEpoch, _name, find
from tests.conftest import described, requested

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MALFORMED = "{}", "[]", "null", "3", '"text"', '{"files": 3}', '{"schema_version": 1}', '{"schema_version": true}', "{"
ODD: list[Any] = [-1, 10**400, 2**63, True, 1.0, math.nan, math.inf, "\ud800", "a\nb", "\x1b[2J", {}, [], [[]], None]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def paths_of(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a JSON document."""
    yield path
    for key, value in document.items() if isinstance(document, dict) else []:
        yield from paths_of(value, (*path, key))
    for number, value in enumerate(document if isinstance(document, list) else []):
        yield from paths_of(value, (*path, number))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value there."""
    if not path:
        return value
    copy = document.copy()
    copy[path[0]] = replaced(document[path[0]], path[1:], value)
    return copy


def in_one_line(read: Callable[[], object]) -> None:
    """Call `read`, which succeeds, or raises a UserError that a job prints in one line."""
    said = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with redirect_stdout(said):
        try:
            read()
        except UserError as error:
            print(line := cli.line_of(error))
            assert line.isprintable()
        said.flush()


def data_set(folder: str) -> Callable[[], object]:
    def read() -> None:
        data = open_data_set(folder)
        for split in data.splits:
            data.require_whole(split)
            data.pixels(split)

    return read


DATA_SET = {
    "schema_version": 1,
    "source": "s",
    "source_fingerprint": "f",
    "fingerprint": "f",
    "image_size": [256, 256],
    "splits": {
        "train": {
            "slices": 1,
            "cases": {"001": 1},
            "parts": [{"name": "part-00000.parquet", "slices": 1, "bytes": 1, "sha256": "0"}],
        }
    },
    "rejected": [],
}


@pytest.mark.parametrize("text", MALFORMED)
def test_a_file_that_is_not_ours_is_named_in_one_line(text: str, tmp_path: Path) -> None:
    for name, read in {
        "dataset.json": lambda: open_data_set(str(tmp_path)),
        "manifest.json": lambda: verify(str(tmp_path)),
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidFile, match=name) as raised:
            read()
        assert "\n" not in str(raised.value)
    (tmp_path / "config.json").write_text(text)
    in_one_line(lambda: require_same_settings(str(tmp_path), {"count": 1}))
    (tmp_path / "vqvae.safetensors").touch()
    with pytest.raises(UserError, match=r"config\.json|has format None"):
        read_bundle(str(tmp_path))


def test_a_bundle_whose_config_lacks_fields_or_names_paths_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "vqvae.safetensors").touch()
    good = {"format": 2, "data": {"uri": "u", "fingerprint": "f"}, "vqvae": {}, "files": {}}
    for config, said in (
        ({"format": 2}, "data: field required"),
        (good | {"files": {"../../x": "0"}}, "files"),
        (good, "do not fit"),
        (good | {"vqvae": {"nothing": 1}}, "do not fit"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InvalidFile, match=said):
            read_bundle(str(tmp_path))


@FAST
@given(st.data())
def test_whatever_stands_in_a_data_set_s_description_is_read_or_refused_in_one_line(
    tmp_path: Path, draw: st.DataObject
) -> None:
    path = draw.draw(st.sampled_from(list(paths_of(DATA_SET))))
    (tmp_path / "dataset.json").write_text(json.dumps(replaced(DATA_SET, path, draw.draw(JSON))))
    in_one_line(data_set(str(tmp_path)))


MODEL = {"uri": "u", "fingerprint": "f"}
INTERVAL = {"mean": 0.9, "low": 0.8, "high": 1.0}
PART = BatchPart("summary/part-00000.parquet", 1, 0, "0")
SHARD = {"name": "part-00000.parquet", "maps": 1, "sha256": "0"}
SCORES = {key: Score(0.5, 0.5) for key in ("ssim_real", "ms_ssim", "fid", "precision", "recall")}
REQUEST = requested()
MANIFEST = Manifest(verdict="released", request=REQUEST, parts=(PART,))
SUMMARY = BatchSummary(
    verdict="released",
    reasons=(),
    scores=SCORES,
    slices=1,
    rejected=0,
    request=REQUEST,
    finished="2026-11-25T00:00:00+00:00",
    seconds=Seconds(slices=1),
)
SETTINGS = {"base_seed": 3, "software": SOFTWARE, "vqvae": {"channels": 4}}
NO_SLICES = DataSet("d", described())
FEATURES = {"fingerprint": "f", "features": {}, "recipe": 1, "seed": 0, "version": "0", "file": "x", "sha256": "0"}
FEATURES |= {"history": [asdict(PretextEpoch(1, 3.0, 0.1, 0.02))]}
CLASS = {"dice": INTERVAL, "hausdorff95": INTERVAL, "missed": 0}
UTILITY = {
    "verdict": "quarantined",
    "reasons": ["of little use"],
    "batch": "b",
    "manifest": "0",
    "data": MODEL,
    "subjects": 10,
    "label_subjects": 10,
    "held_out_slices": 6,
    "held_out_subjects": 3,
    "steps": 20,
    "batch_size": 16,
    "seed": 0,
    "version": "0",
    "finished": SUMMARY.finished,
    "seconds": 1,
    "utility": {"CSF": INTERVAL},
    "added": {"few-both": {"CSF": INTERVAL}},
    "arms": {arm: {"real": 1, "synthetic": 1, "classes": {"CSF": CLASS}} for arm in ("few", "few-both")},
}
HOLDER = {"token": "t", "generation": 1, "host": "h", "pid": 1, "beat": "b", "released": True}


def read_manifest(folder: str) -> None:
    manifest = manifests.read_manifest(folder)
    say("verify", f"{sum(part.slices for part in manifest.parts)} slices, {manifest.verdict}")
    for part in manifest.parts:
        assert _check(asdict(part), folder, manifest.request.format)["faults"]  # there is no such part


def read_summary(folder: str) -> None:
    root = folder.rpartition("/")[0]
    storage.write_text(f"{folder}/manifest.json", "{}")
    index.render_index(history.read_batches(root))
    if last := history.last_released(history.read_batches(root), REQUEST, "eyes", but=""):
        gate.judge(SCORES, GateConfig(), last.summary.scores)
    for line in generate.lines(summaries.read_summary(folder)):
        say("generate", line)


def read_checkpoints(folder: str) -> None:
    checkpoint.newest(folder.rpartition("/")[0])
    with suppress(UserError):  # none can be read
        checkpoint.best(folder.rpartition("/")[0], "ssim")


def read_utility(folder: str) -> None:
    utility = utilities.read_utility(folder)
    for line in (*evaluate.utility_lines(utility), *utility.reasons, utility.verdict):
        say("probe", line)
    write_utility_report(folder, utility)
    say("batches", f"{history.FinishedBatch('b', SUMMARY, utility).verdict}, {utility.lowest}")


def read_lock(folder: str) -> None:
    holder, _ = lock._read(f"{folder}/{lock.LOCK}")
    assert holder
    say("lock", f"{holder.host}, process {holder.pid}")


def read_settings(folder: str) -> None:
    assert 0 <= seed_of(folder) < 2**63
    require_same_software(folder)
    require_same_settings(folder, SETTINGS)


def read_evaluation(folder: str) -> None:
    for line in evaluate.lines(documents.read(f"{folder}/evaluation.json", ReconstructionScores)):
        say("evaluate", line)


def read_features(folder: str) -> None:
    find(replace(NO_SLICES, uri=folder), FeaturesConfig())


READERS: dict[str, tuple[Any, Callable[[str], object]]] = {
    "manifest.json": (MANIFEST.to_json(), read_manifest),
    "summary.json": (SUMMARY.to_json(), read_summary),
    "config.json": (SETTINGS, read_settings),
    "model/config.json": (
        {"format": 2, "data": MODEL, "vqvae": {}, "prior": "dcgan", "dcgan": {}, "files": {"x.safetensors": "0"}},
        lambda folder: read_bundle(f"{folder}/model"),
    ),
    "train.json": ({"data": "d", "vqvae": "v", "parts": [SHARD]}, lambda folder: encode.shards_of(folder, "train")),
    "evaluation.json": (
        {
            "data": {"uri": "d", "fingerprint": "f"},
            "split": "validate",
            "slices": 1,
            "cases": 1,
            "ssim": INTERVAL,
            "psnr_db": INTERVAL,
            "codes_in_use": 1,
            "codes_in_use_percent": 1.0,
            "perplexity": 1.0,
        },
        read_evaluation,
    ),
    "utility.json": (UTILITY, read_utility),
    "state.json": ({"undone": 0, "step": 1, "sha256": "0"}, read_checkpoints),
    "lock.json": (HOLDER, read_lock),
    f"features/{_name(NO_SLICES, FeaturesConfig())}.json": (FEATURES, read_features),
}


@pytest.mark.parametrize("name", READERS)
@settings(FAST, max_examples=30)
@given(st.data())
def test_whatever_stands_in_a_file_of_ours_is_read_or_refused_in_one_line(
    tmp_path: Path, name: str, draw: st.DataObject
) -> None:
    folder = tmp_path / "root" / "one"
    for each in ("model", "features"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    (folder / "model" / "vqvae.safetensors").touch()
    (folder / "state.pt").touch()
    good, read = READERS[name]
    path = draw.draw(st.sampled_from(list(paths_of(good))))
    value = draw.draw(JSON | st.sampled_from(ODD))
    (folder / name).write_text(json.dumps(replaced(good, path, value)))
    in_one_line(lambda: read(str(folder)))
