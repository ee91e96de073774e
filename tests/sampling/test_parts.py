"""A part that is made again, and refuses other slices than it did before: another kind of device may see it so."""

import json

import numpy as np
import pyarrow as pa
import pytest

from oasisgen import storage
from oasisgen.config import Format
from oasisgen.lock import lock
from oasisgen.sampling.formats import SliceWriter
from oasisgen.sampling.parts import entry_of, part_uri, write_part
from oasisgen.sampling.png import PngEncoder
from oasisgen.sampling.verify import verify

IDS = [3, 10_000, 10_001]


def make(uri: str, kind: Format, refused: set[int], part: int = 0) -> pa.Table:
    """The slices of a part as the pipeline leaves them: PNGs are written, the part is not yet complete."""
    batch = {
        "id": np.array(IDS) + 100 * part,
        "level": np.array(IDS) % 32,
        "part": np.full(3, part),
        "image": np.random.default_rng(part).integers(0, 256, (3, 256, 256), np.uint8),
        "codes_in_use": np.array([5, 6, 7]),
        "device": np.array(["cpu"] * 3),
        "refused": np.array(["a copy" if number in refused else "" for number in IDS]),
    }
    written = SliceWriter(uri, kind)(PngEncoder("abc", 5)(batch))
    return pa.table({name: list(values) for name, values in written.items()})


def finish(uri: str, kind: Format, parts: int) -> dict[str, object]:
    """Write the manifest, and read everything back."""
    entries = [entry_of(uri, number, len(IDS)) for number in range(parts)]
    storage.write_text(f"{uri}/manifest.json", json.dumps({"verdict": "released", "format": kind, "parts": entries}))
    return verify(uri)


@pytest.mark.parametrize("kind", ["png", "parquet", "webdataset"])
def test_what_an_earlier_attempt_left_of_a_part_is_gone_once_it_is_complete(
    kind: Format, place: str, connected: str
) -> None:
    uri = f"{place}/batch"
    with lock(uri) as held:
        for part in (0, 1, 2):
            write_part(uri, part, kind, make(uri, kind, {3}, part), held)
            storage.remove(part_uri(uri, part))  # the job was killed right before it
        write_part(uri, 0, kind, make(uri, kind, {10_000}), held)
        write_part(uri, 1, kind, make(uri, kind, set(), 1), held)
        write_part(uri, 2, kind, make(uri, kind, set(IDS), 2), held)  # all are refused
        finish(uri, kind, 3)
    listed = sorted(name for name, _ in storage.list_files(f"{uri}/rejected"))
    assert listed == ["part-00000.parquet", "part-00002.parquet"]
    if kind == "png":
        names = {int(name.rpartition("/")[2].removesuffix(".png")) for name, _ in storage.list_files(f"{uri}/slices")}
        assert names == {3, 10_001, 103, 10_100, 10_101}
