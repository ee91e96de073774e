import json
from pathlib import Path

import numpy as np
import pytest

from oasisgen import storage
from oasisgen.cluster import Actors
from oasisgen.config.train import VQVAEConfig
from oasisgen.data.slices import DataSet
from oasisgen.errors import UserError
from oasisgen.lock import LockLost
from oasisgen.models.vqvae import VQVAE
from oasisgen.training.encode import encode_splits, read_codes, source_of
from tests.conftest import lost_lock


def test_code_maps_that_are_not_those_written_are_refused_until_they_are_made_anew(
    data: DataSet, tmp_path: Path
) -> None:
    vqvae = VQVAE(VQVAEConfig(channels=16, residual_channels=8)).eval()
    uri, part = str(tmp_path), tmp_path / "validate" / "part-00000.parquet"
    with pytest.raises(LockLost):
        encode_splits(data, ["validate"], lambda: vqvae, uri, Actors(), lost_lock(uri).write)
    assert not (tmp_path / "validate.json").exists()
    encode_splits(data, ["validate"], lambda: vqvae, uri, Actors(), storage.write_bytes)
    (entry,) = json.loads((tmp_path / "validate.json").read_text())["parts"]
    assert (entry["name"], entry["maps"]) == (part.name, 64)
    whole = part.read_bytes()
    assert len(read_codes(uri, "validate", (64, 64)).take_all()) == 64
    streamed, stored = (source_of(feed, uri, "validate", (64, 64)).load() for feed in ("stream", "memory"))
    for name in ("case", "level", "codes"):
        assert np.array_equal(streamed.column(name), stored.column(name))
    encode_splits(data, ["validate"], lambda: vqvae, uri, Actors(), storage.write_bytes)  # is finished: left as it is
    assert part.read_bytes() == whole
    together = tmp_path / "together"
    encode_splits(data, ["train", "validate"], lambda: vqvae, str(together), Actors(), storage.write_bytes)
    assert (together / "validate" / part.name).read_bytes() == whole
    of_train = read_codes(str(together), "train", (64, 64)).to_pandas()
    assert of_train["case"].tolist() == [case for case in ("001", "002", "003") for _ in range(32)]

    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    part.write_bytes(flipped)
    with pytest.raises(UserError, match=r"part-00000\.parquet .* remove .*/validate\.json and run the command again"):
        read_codes(uri, "validate", (64, 64)).take_all()
    (tmp_path / "validate.json").unlink()
    encode_splits(data, ["validate"], lambda: vqvae, uri, Actors(), storage.write_bytes)
    assert part.read_bytes() == whole
