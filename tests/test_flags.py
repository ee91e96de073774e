"""Whatever flags are given to a job: they are taken, or refused in one line with exit status 2, before Ray starts."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import evaluate, generate, phantom, train
from oasisgen import cli
from oasisgen.config.generate import GateConfig, GenerateConfig
from oasisgen.config.pack import PackConfig
from oasisgen.config.presets import PRESETS
from oasisgen.config.train import TrainConfig
from tests.test_documents import FAST


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


OTHER_JOBS: dict[str, tuple[Callable[[list[str]], Any], list[str], list[str]]] = {
    "train.py": (
        train.parse,
        ["demo", "--data", "d", "--out", "o"],
        [
            "--workers",
            "--seed",
            "--vqvae.crop",
            "--vqvae.learning-rate",
            "--masked.positions",
            "--prior",
            "--gpus-per-worker",
        ],
    ),
    "pack.py": (cli.flags(PackConfig), ["--source", "s", "--out", "o"], ["--strict", "--dry-run", "--out"]),
    "evaluate.py": (
        evaluate.parse,
        ["--model", "m", "--data", "d", "--out", "o"],
        ["--split", "--gpus-per-worker", "--wait-minutes", "--out"],
    ),
    "evaluate.py --batch": (
        evaluate.parse,
        ["--batch", "b"],
        ["--pairs", "--subjects", "--segmenter.learning-rate", "--workers", "--out"],
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
    status: object = 0
    lines = 0
    try:
        assert dataclasses.is_dataclass(cli.parse(parser, job))
    except SystemExit as stop:
        status, lines = stop.code, 1
    assert (status, lines) in [(0, 0), (2, 1)]
    assert capsys.readouterr().err.count("\n") == lines


def test_a_gate_that_lets_everything_through_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gate\.fid is inf: must be a finite number"):
        GateConfig(fid=math.inf)
