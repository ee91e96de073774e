import base64
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from ray.data.extensions import ArrowPythonObjectArray

from oasisgen import storage, tables
from oasisgen.data import slices
from oasisgen.data.description import PackedPart, Split
from oasisgen.data.shards import Columns
from oasisgen.errors import InvalidFile, UserError
from oasisgen.sampling import formats
from oasisgen.sampling.manifest import BatchPart
from oasisgen.sampling.parts import SUMMARY, entry_of, read_listed
from oasisgen.sampling.verify import _check
from oasisgen.training import encode
from tests.conftest import described

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


assert ray.data  # importing it registers the extension type whose values are pickles


def crafted(schema: pa.Schema, trace: Path, column: str) -> bytes:
    """A Parquet file with the columns of `schema`, of which one holds pickles in Ray's extension type."""
    objects = ArrowPythonObjectArray.from_objects([Payload(trace)])
    arrays = [objects if name == column else pa.nulls(1, schema.field(name).type) for name in schema.names]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, names=schema.names), sink)
    return sink.getvalue().to_pybytes()


def test_the_crafted_file_is_a_danger_to_who_reads_it_as_it_comes(tmp_path: Path) -> None:
    """What the other tests rest on: if this one fails, Ray no longer does that."""
    (tmp_path / "part.parquet").write_bytes(crafted(SUMMARY, tmp_path / "trace", "file"))
    pq.read_table(tmp_path / "part.parquet").to_pylist()
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("schema", [SUMMARY, formats.PNGS, SCHEMA])
def test_no_column_of_a_crafted_file_is_unpickled(schema: pa.Schema, tmp_path: Path) -> None:
    for column in schema.names:
        with pytest.raises(InvalidFile, match=r"x\.parquet is not a file that this program wrote \(.*column"):
            tables.parse(crafted(schema, tmp_path / "trace", column), schema, "x.parquet")
    assert not (tmp_path / "trace").exists()


def test_readers_of_a_batch_do_not_unpickle(tmp_path: Path) -> None:
    batch, trace = str(tmp_path), tmp_path / "trace"
    data = crafted(SUMMARY, trace, "file")
    storage.write_bytes(f"{batch}/summary/part-00000.parquet", data)
    listed = BatchPart("summary/part-00000.parquet", 1, 0, hashlib.sha256(data).hexdigest())
    part = {"name": listed.name, "sha256": listed.sha256, "slices": 1}
    for read in (
        lambda: _check(part, batch, "png"),
        lambda: entry_of(batch, 0, 1),
        lambda: read_listed(batch, listed, ["id"]),
    ):
        with pytest.raises(UserError, match="is not a file that this program wrote"):
            read()
    storage.write_bytes(f"{batch}/{formats.part_path(0, 'parquet')}", crafted(formats.PNGS, trace, "png"))
    row = pa.table({"id": [0], "file": [formats.part_path(0, "parquet")]})
    assert list(formats.read_pngs(batch, "parquet", row)) == [(0, None)]
    assert not trace.exists()


def test_readers_of_shards_and_code_maps_do_not_unpickle_although_the_digest_is_right(tmp_path: Path) -> None:
    folder, trace = str(tmp_path), tmp_path / "trace"
    for schema, binary in ((slices.schema_of(described()), "image"), (encode.SCHEMA, "codes")):
        decode = Columns(binary, np.uint8, (1, 1), ("level",)).decode
        for column in schema.names:
            data = crafted(schema, trace, column)
            storage.write_bytes(f"{folder}/train/part-00000.parquet", data)
            part = {"name": "part-00000.parquet", "sha256": hashlib.sha256(data).hexdigest()}
            codes_file = {"data": "d", "vqvae": "v", "parts": [part | {"maps": 1}]}
            storage.write_text(f"{folder}/train.json", json.dumps(codes_file))
            train = Split(1, {"001": 1}, parts=(PackedPart(**part, slices=1, bytes=len(data)),))
            data_set = slices.DataSet(folder, described(splits={"train": train}))
            shards = slices.shards_of(data_set, "train") + encode.shards_of(folder, "train")
            for shard in shards:
                with pytest.raises(InvalidFile, match=r"part-00000\.parquet is not a file that this program wrote"):
                    [decode(table) for table in shard.read(schema)]
    assert not trace.exists()


class Trap(pa.ExtensionType):  # type: ignore[misc]
    """Runs code as soon as pyarrow looks at the schema of a file that names it, as one of Ray's types can."""

    def __init__(self) -> None:
        super().__init__(pa.int64(), "oasisgen.trap")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Trap":
        raise ValueError("the trap has closed")


@pytest.fixture
def trap() -> Iterator[None]:
    pa.register_extension_type(Trap())
    yield
    pa.unregister_extension_type("oasisgen.trap")


def with_schemas(*spellings: bytes, of: pa.Schema = SCHEMA) -> bytes:
    """A Parquet file with the columns `of`, but with other values of the key ARROW:schema, which may occur twice."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, of, store_schema=False) as writer:
        writer.write_table(of.empty_table())
        for name, spelling in zip(("ARROW:schema", "ARROW:schem2"), spellings, strict=False):
            writer.add_key_value_metadata({name: spelling})
    return sink.getvalue().to_pybytes().replace(b"ARROW:schem2", b"ARROW:schema")


def trapped(padding: int) -> bytes:
    """A schema as Parquet files hold it. With the padding, the name of the type begins at any of base64's places."""
    metadata = {"ARROW:extension:name": "oasisgen.trap", "ARROW:extension:metadata": ""}
    fields = [pa.field("id", pa.int64(), metadata=metadata), SCHEMA.field("name")]
    serialized = pa.schema(fields, metadata={"x": "x" * 8 * padding}).serialize().to_pybytes()
    return base64.b64encode(serialized)


@pytest.mark.usefixtures("trap")
def test_an_extension_type_is_refused_before_pyarrow_looks_at_the_schema() -> None:
    with pytest.raises(ValueError, match="the trap has closed"):
        pq.read_metadata(pa.BufferReader(with_schemas(trapped(0))))
    spellings = [trapped(padding) for padding in range(3)]
    assert {base64.b64decode(spelling).index(tables.EXTENSION) % 3 for spelling in spellings} == {0, 1, 2}
    plain = base64.b64encode(SCHEMA.serialize().to_pybytes())
    for schemas in (*([spelling] for spelling in spellings), [spellings[0], plain], [plain, spellings[0]]):
        data = with_schemas(*schemas)
        for read in (tables.parse, lambda data, *rest: tables.read_footer(pa.BufferReader(data), *rest)):
            with pytest.raises(
                InvalidFile, match=r"x is not a file that this program wrote \(a column of an extension"
            ):
                read(data, SCHEMA, "x")


def test_a_schema_or_a_name_that_cannot_be_decoded_is_one_line() -> None:
    named = tables.to_bytes(pa.schema([("id", pa.int64()), ("näme", pa.string())]).empty_table(), 1)
    for data in (
        with_schemas(b"no base64"),
        with_schemas(base64.b64encode(b"no schema")),
        named.replace("ä".encode(), b"\xff\xff"),
    ):
        for read in (tables.parse, lambda data, *rest: tables.read_footer(pa.BufferReader(data), *rest)):
            with pytest.raises(
                InvalidFile, match=r"x is (damaged|not a file that this program wrote) \(.*\): remove it"
            ):
                read(data, SCHEMA, "x")


def test_a_footer_of_any_size_is_found() -> None:
    for padding in (0, tables.TAIL_BYTES):
        schema = SCHEMA.with_metadata({"x": "x" * padding})
        data = tables.to_bytes(pa.table([range(9), ["x"] * 9], schema=schema), 2)
        assert tables.read_footer(pa.BufferReader(data), SCHEMA, "x").num_row_groups == 5
        assert len(tables.parse(data, SCHEMA, "x")) == 9


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        tables.write(f"{tmp_path}/part-{number}.parquet", pa.table([[number], [name]], schema=SCHEMA), 1)
    for number, name in enumerate(("a", "b")):
        uri = f"{tmp_path}/part-{number}.parquet"
        assert tables.read(uri, SCHEMA).to_pylist() == [{"id": number, "name": name}]
        assert tables.read(uri, SCHEMA, ["name"]).to_pydict() == {"name": [name]}


def test_other_columns_and_damage_are_one_line() -> None:
    whole = tables.to_bytes(pa.table([list(range(1000)), ["x"] * 1000], schema=SCHEMA), 1000)
    for other in (
        pa.schema([("id", pa.int64())]),
        pa.schema([("id", pa.int32()), ("name", pa.string())]),
        pa.schema([("id", pa.int64()), ("name", pa.list_(pa.string()))]),
        pa.schema([("id", pa.int64()), ("name", pa.string()), ("more", pa.string())]),
    ):
        with pytest.raises(InvalidFile, match=r"x is not a file that this program wrote \(.*\): remove it and create"):
            tables.parse(tables.to_bytes(other.empty_table(), 1), SCHEMA, "x")
    random = np.random.default_rng(0)
    for data in [b"", whole[:100], whole[:-4], json.dumps({}).encode()]:
        with pytest.raises(InvalidFile):
            tables.parse(data, SCHEMA, "x")
    for _ in range(300):  # flipped bits: one line, or a table
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << int(random.integers(8))
        with suppress(InvalidFile):
            tables.parse(bytes(damaged), SCHEMA, "x")


def test_a_reader_of_the_first_images_does_not_decode_all_others() -> None:
    images = [os.urandom(2**16) for _ in range(128)]
    written = pa.BufferReader(tables.to_bytes(pa.table({"image": pa.array(images, pa.binary())}), len(images)))
    before = pa.total_allocated_bytes()
    batches = pq.ParquetFile(written).iter_batches(tables.ROWS_PER_CHECK, use_threads=False)
    first = next(batches)
    assert first["image"].to_pylist() == images[: tables.ROWS_PER_CHECK]
    assert pa.total_allocated_bytes() - before < len(images) * 2**16 / 2
