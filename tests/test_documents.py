"""Whatever lies in place of a file of ours, and whatever flags are given: one line, no traceback."""

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import tyro
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import evaluate, generate, pack, phantom, train
from oasisgen import cli, documents, lock, storage
from oasisgen.claim import SOFTWARE, require_same, require_same_software
from oasisgen.config import PRESETS, GateConfig, GenerateConfig, TrainConfig
from oasisgen.data.slices import open_data_set
from oasisgen.errors import InvalidFile, UserError
from oasisgen.evaluation import nights, release
from oasisgen.models.bundle import read_bundle
from oasisgen.progress import say
from oasisgen.sampling.batch import seed_of
from oasisgen.sampling.verify import _check, verify
from oasisgen.training import checkpoint, codes

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
    in_one_line(lambda: require_same(str(tmp_path), {"count": 1}))
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


def floats_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """The names of all fields of a configuration that are floats."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from floats_of(field.type, f"{prefix}{field.name}.")
        elif field.type is float:
            yield prefix + field.name


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_number_of_a_configuration_may_be_infinite(value: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    train = lambda arguments: tyro.extras.overridable_config_cli(PRESETS, args=arguments)  # noqa: E731
    for parser, given_flags, kind in (
        (train, ["demo", "--data", "d", "--out", "o"], TrainConfig),
        (generate.parse, ["--model", "m", "--out", "o"], GenerateConfig),
    ):
        for name in floats_of(kind):
            monkeypatch.setattr("sys.argv", ["job", *given_flags, "--" + name.replace("_", "-"), value])
            with pytest.raises(SystemExit) as stop:
                cli.parse(parser, "job")
            assert stop.value.code == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert name in error
            assert "must be" in error


MODEL = {"uri": "u", "fingerprint": "f"}
INTERVAL = {"mean": 0.9, "low": 0.8, "high": 1.0}
PART = {"name": "summary/part-00000.parquet", "slices": 1, "rejected": 0, "sha256": "0"}
SHARD = {"name": "part-00000.parquet", "maps": 1, "sha256": "0"}
MEASURES = {name: {"value": 0.5, "floor": 0.5} for name in ("ssim_real", "ms_ssim", "fid", "precision", "recall")}
REQUEST = dict.fromkeys(nights.SAME, 1)
SETTINGS = {"base_seed": 3, "software": SOFTWARE, "vqvae": {"channels": 4}}
HOLDER = {"token": "t", "generation": 1, "host": "h", "pid": 1, "beat": "b", "released": True}


def read_manifest(folder: str) -> None:
    manifest = documents.read(f"{folder}/manifest.json", documents.Manifest)
    say("verify", f"{sum(part['slices'] for part in manifest['parts'])} slices, {manifest['verdict']}")
    for part in manifest["parts"]:
        assert _check(part, folder, manifest["format"])["faults"]  # there is no such part


def read_summary(folder: str) -> None:
    root = folder.rpartition("/")[0]
    storage.write_text(f"{folder}/manifest.json", "{}")
    nights.rows_of(nights.read_nights(root))
    if last := nights.last_released(root, REQUEST, but=""):
        release.judge(MEASURES, GateConfig(), last["measures"])
    summary = documents.read(f"{folder}/summary.json", documents.Summary)
    for line in generate.lines(summary):
        say("generate", line)


def read_checkpoints(folder: str) -> None:
    checkpoint.newest(folder.rpartition("/")[0])
    with suppress(UserError):  # none can be read
        checkpoint.best(folder.rpartition("/")[0], "ssim")


def read_lock(folder: str) -> None:
    holder, _ = lock._read(f"{folder}/{lock.LOCK}")
    assert holder
    say("lock", f"{holder.host}, process {holder.pid}")


def read_settings(folder: str) -> None:
    assert 0 <= seed_of(folder) < 2**63
    require_same_software(folder)
    require_same(folder, SETTINGS)


def read_evaluation(folder: str) -> None:
    for line in evaluate.lines(documents.read(f"{folder}/evaluation.json", documents.Evaluation)):
        say("evaluate", line)


READERS: dict[str, tuple[Any, Callable[[str], object]]] = {
    "manifest.json": ({"verdict": "released", "format": "png", "parts": [PART]}, read_manifest),
    "summary.json": (
        {
            "verdict": "released",
            "reasons": [],
            "measures": MEASURES,
            "slices": 1,
            "rejected": 0,
            "model": "m",
            "base_seed": 0,
            "finished": "2026-11-25T00:00:00+00:00",
            "seconds": {"slices": 1},
            **REQUEST,
        },
        read_summary,
    ),
    "config.json": (SETTINGS, read_settings),
    "model/config.json": (
        {"format": 2, "data": MODEL, "vqvae": {}, "prior": "dcgan", "dcgan": {}, "files": {"x.safetensors": "0"}},
        lambda folder: read_bundle(f"{folder}/model"),
    ),
    "train.json": ({"data": "d", "vqvae": "v", "parts": [SHARD]}, lambda folder: codes.shards_of(folder, "train")),
    "evaluation.json": (
        {
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
    "state.json": ({"undone": 0, "step": 1, "sha256": "0"}, read_checkpoints),
    "lock.json": (HOLDER, read_lock),
}


@pytest.mark.parametrize("name", READERS)
@settings(FAST, max_examples=30)
@given(st.data())
def test_whatever_stands_in_a_file_of_ours_is_read_or_refused_in_one_line(
    tmp_path: Path, name: str, draw: st.DataObject
) -> None:
    folder = tmp_path / "root" / "one"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "vqvae.safetensors").touch()
    (folder / "state.pt").touch()
    good, read = READERS[name]
    path = draw.draw(st.sampled_from(list(paths_of(good))))
    value = draw.draw(JSON | st.sampled_from(ODD))
    (folder / name).write_text(json.dumps(replaced(good, path, value)))
    in_one_line(lambda: read(str(folder)))


FLAGS = ["--count", "--levels", "--ids", "--base-seed", "--gate.fid", "--wait-minutes", "--link-hours", "--format"]
VALUES = st.sampled_from(["0", "-1", "1e400", "nan", "0-31", "0-99", "31-0", "", "png", "9" * 5000, "٣", "--", "1.5"])


@FAST
@given(st.lists(st.tuples(st.sampled_from(FLAGS), VALUES | st.text(max_size=8)), max_size=3))
def test_whatever_flags_are_given_they_are_taken_or_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, pairs: list[tuple[str, str]]
) -> None:
    arguments = ["--model", "m", "--out", "o", *(argument for pair in pairs for argument in pair)]
    monkeypatch.setattr("sys.argv", ["generate.py", *arguments])
    try:
        config = cli.parse(generate.parse, "generate.py")
    except SystemExit as stop:
        status = stop.code
        lines = capsys.readouterr().err.count("\n")
        assert (status, lines) == (2, 1) or not status
    else:
        assert isinstance(config, GenerateConfig | generate.Verify)
        if isinstance(config, GenerateConfig):
            assert all(map(math.isfinite, dataclasses.astuple(config.gate)))
    capsys.readouterr()


OTHER_JOBS: dict[str, tuple[Callable[[list[str]], Any], list[str], list[str]]] = {
    "train.py": (
        train.parse,
        ["demo", "--data", "d", "--out", "o"],
        [
            "--workers",
            "--seed",
            "--vqvae.crop",
            "--vqvae.learning-rate",
            "--masked.places",
            "--prior",
            "--gpus-per-worker",
        ],
    ),
    "pack.py": (cli.flags(pack.Flags), ["--source", "s", "--out", "o"], ["--strict", "--dry-run", "--out"]),
    "evaluate.py": (
        cli.flags(evaluate.Flags),
        ["--model", "m", "--data", "d", "--out", "o"],
        ["--split", "--gpus-per-worker", "--wait-minutes", "--out"],
    ),
    "phantom.py": (cli.flags(phantom.Flags), ["--out", "o"], ["--train", "--validate", "--test", "--seed", "--out"]),
}


@pytest.mark.parametrize("job", OTHER_JOBS)
@settings(FAST, max_examples=15)
@given(st.data())
def test_whatever_flags_another_job_is_given_they_are_taken_or_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, job: str, draw: st.DataObject
) -> None:
    parser, required, names = OTHER_JOBS[job]
    values = VALUES | st.text(max_size=8) | st.just("\udcff")  # a byte of a command line that is no UTF-8
    pairs = draw.draw(st.lists(st.tuples(st.sampled_from(names), values), min_size=1, max_size=3))
    monkeypatch.setattr("sys.argv", [job, *required, *(argument for pair in pairs for argument in pair)])
    with suppress(SystemExit):
        assert dataclasses.is_dataclass(cli.parse(parser, job))
        assert capsys.readouterr().err == ""
        return
    assert capsys.readouterr().err.count("\n") == 1


def test_a_gate_that_lets_everything_through_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gate\.fid is inf: must be a finite number"):
        GateConfig(fid=math.inf)
