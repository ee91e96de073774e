import json
from pathlib import Path

import pytest

from oasisgen.errors import InvalidFile
from oasisgen.training import history
from oasisgen.training.history import Epoch

EPOCHS = [Epoch(epoch, 6 * epoch, {"ssim": 0.5, "codes_in_use": 3}, 80.1, 0) for epoch in (1, 2, 3)]
LINE = b'{"epoch": 2, "step": 12, "ssim": 0.5, "codes_in_use": 3, "slices_per_s": 80.1, "undone": 0}\n'


def test_epochs_are_flat_lines_and_are_read_to_the_same_bytes(tmp_path: Path) -> None:
    history.write(str(tmp_path), "vqvae", EPOCHS)
    written = (tmp_path / "vqvae.jsonl").read_bytes()
    assert written.splitlines(keepends=True)[1] == LINE
    assert history.read(str(tmp_path), "vqvae") == EPOCHS
    assert history.of({"history": [json.loads(line) for line in written.splitlines()]}) == EPOCHS
    history.write(str(tmp_path), "vqvae", history.read(str(tmp_path), "vqvae"))
    assert (tmp_path / "vqvae.jsonl").read_bytes() == written  # a count of codes is still 3, not 3.0


@pytest.mark.parametrize(
    ("damaged", "fault"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[]", ""),
        (b"\xff", ""),
        (b"[" * 100_000, ""),
        (LINE.replace(b"12", b'"12"'), r"\(step: .*integer\)"),
        (LINE.replace(b', "undone": 0', b""), r"\(undone: .*required\)"),
        (LINE.replace(b"0.5", b'"high"'), r"\(metrics.ssim.*number\)"),
    ],
)
def test_a_damaged_line_of_a_history_is_named_in_one_line(damaged: bytes, fault: str, tmp_path: Path) -> None:
    history.write(str(tmp_path), "vqvae", EPOCHS)
    file = tmp_path / "vqvae.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([whole[0], damaged.strip() + b"\n", whole[2]]))
    with pytest.raises(InvalidFile, match=rf"vqvae\.jsonl, line 2, is not .*{fault}") as raised:
        history.read(str(tmp_path), "vqvae")
    assert "\n" not in str(raised.value)


def test_a_checkpoint_s_history_with_other_fields_is_one_line() -> None:
    with pytest.raises(InvalidFile, match=r"history, epoch 2, is not .*\(epoch: .*required\)"):
        history.of({"history": [EPOCHS[0].to_json(), {"step": 12}]})
