"""What had another name in an older version is refused with the name of today."""

from dataclasses import asdict
from pathlib import Path

import pytest

from jobs import train
from oasisgen import cli
from oasisgen.config import renamed
from oasisgen.config.folder import require_same_settings, write_settings
from oasisgen.config.train import TrainConfig
from oasisgen.errors import UserError
from tests.conftest import one_line

REQUIRED = ["--data", "d", "--out", "o"]


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line in which jobs/train.py refuses its flags."""
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.parse(train.parse, "train.py")
    assert stop.value.code == 2
    return one_line(capsys.readouterr().err)


@pytest.mark.parametrize("preset", [[], ["demo"], ["full"]], ids=["no preset", "demo", "full"])
@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--vqvae.gradient-norm", "--vqvae.gradient-norm is called --vqvae.max-grad-norm now"),
        ("--vqvae.gradient_norm=1", "--vqvae.gradient_norm is called --vqvae.max-grad-norm now"),
        ("--vqvae.ema-decay", "--vqvae.ema-decay is called --vqvae.codebook-ema-decay now"),
        ("--dcgan.no-template", "--dcgan.no-template is called --dcgan.no-pca-prior now"),
        ("--masked.rounds", "--masked.rounds is called --masked.decoding-steps now"),
    ],
)
def test_a_renamed_flag_is_refused_with_its_new_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], preset: list[str], flag: str, line: str
) -> None:
    assert refusal(monkeypatch, capsys, *preset, *REQUIRED, flag) == f"train.py: {line} (see train.py --help)"


def test_a_renamed_preset_is_refused_with_its_new_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(monkeypatch, capsys, "seed", *REQUIRED)
    assert line == "train.py: preset seed is called baseline now (see train.py --help)"


def test_every_new_name_is_a_setting_and_no_old_one_is() -> None:
    config = asdict(TrainConfig(data="d", out="o"))
    for group, names in renamed.SETTINGS.items():
        assert set(names.values()) <= config[group].keys()
        assert not names.keys() & config[group].keys()


def test_a_run_that_was_begun_with_old_names_is_refused_in_one_line(tmp_path: Path) -> None:
    settings = asdict(TrainConfig(data="d", out="o"))
    old = settings | {"dcgan": {("template" if k == "pca_prior" else k): v for k, v in settings["dcgan"].items()}}
    write_settings(str(tmp_path), old)
    with pytest.raises(UserError) as refused:
        require_same_settings(str(tmp_path), settings)
    assert str(refused.value) == (
        f"{tmp_path} was started by an older version of oasisgen (dcgan.template is called dcgan.pca_prior now): "
        "finish it with that version, or use another --out"
    )
