from pathlib import Path

import pytest

from oasisgen.errors import InvalidFile
from oasisgen.training import history


def test_a_damaged_line_of_a_history_is_named_in_one_line(tmp_path: Path) -> None:
    lines = [{"epoch": epoch, "step": 6 * epoch, "loss": 0.5} for epoch in (1, 2, 3)]
    history.write(str(tmp_path), "vqvae", lines)
    assert history.read(str(tmp_path), "vqvae") == lines
    file = tmp_path / "vqvae.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    for damaged in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"epoch": 2}', b'{"epoch": "2", "step": 3}'):
        file.write_bytes(b"".join([whole[0], damaged + b"\n", whole[2]]))
        with pytest.raises(InvalidFile, match=r"vqvae\.jsonl, line 2, is not") as raised:
            history.read(str(tmp_path), "vqvae")
        assert "\n" not in str(raised.value)
