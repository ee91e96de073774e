"""Whatever lies in place of a file of ours, and whatever flags are given: one line, no traceback."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import generate
from oasisgen import cli
from oasisgen.claim import require_same
from oasisgen.config import PRESETS, GateConfig, GenerateConfig, TrainConfig
from oasisgen.data.slices import open_data_set
from oasisgen.errors import InvalidFile, UserError
from oasisgen.models.bundle import read_bundle
from oasisgen.sampling.verify import verify

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MALFORMED = "{}", "[]", "null", "3", '"text"', '{"files": 3}', '{"schema_version": 1}', '{"schema_version": true}', "{"
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
    """Call `read`, which succeeds or raises a UserError of one line."""
    said = ""
    try:
        read()
    except UserError as error:
        said = str(error)
    assert "\n" not in said


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


def test_a_gate_that_lets_everything_through_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gate\.fid is inf: must be a finite number"):
        GateConfig(fid=math.inf)
