import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from oasisgen import storage, tables
from oasisgen.data.feed import Feed
from oasisgen.data.row_groups import RowGroupFeed, checksums
from oasisgen.data.shards import Columns, Shard
from oasisgen.data.slices import columns_of
from oasisgen.data.stream import Streamed, StreamedFeed
from oasisgen.data.windows import WINDOW
from oasisgen.errors import InvalidFile, StorageError
from tests.proxy import proxy

SIZES = (5, 3, 0, 8, 4, 4, 6, 5, 7, 3, 5)
SCHEMA = columns_of((), ())


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Streamed, Feed]:
    """Small slices in eleven shards, one of them empty; streamed and in memory."""
    random, shards, blocks = np.random.default_rng(0), [], []
    for part, rows in enumerate(SIZES):
        images = random.integers(0, 256, (rows, 8, 6), np.uint8)
        case, level = [f"case {part}"] * rows, np.arange(rows, dtype=np.int64)
        columns = {"case": case, "subject": case, "level": level, "height": [8] * rows, "width": [6] * rows}
        columns["image"] = [image.tobytes() for image in images]
        file = tmp_path_factory.mktemp("shards") / f"{part}.parquet"
        written = tables.write(str(file), pa.table(columns, SCHEMA), 2)
        shards.append(Shard(str(file), hashlib.sha256(written).hexdigest(), rows, "has changed"))
        blocks.append({"case": np.array(case, object), "level": level, "image": images})
    return Streamed(tuple(shards), SCHEMA, Columns("image", np.uint8, (8, 6), ("case", "subject", "level"))), Feed(
        blocks
    )


def test_a_streamed_split_has_the_rows_of_one_in_memory(split: tuple[Streamed, Feed]) -> None:
    streamed, memory = split[0].load(), split[1]
    assert len(streamed) == len(memory) == sum(SIZES)
    assert streamed.image_size == memory.image_size
    numbers = np.random.default_rng(1).permutation(len(memory))
    for name in ("image", "case", "level"):
        assert np.array_equal(streamed.rows(numbers, name), memory.rows(numbers, name))
        assert np.array_equal(streamed.column(name), memory.column(name))
    corners = np.stack([numbers % 4, numbers % 3], 1)
    assert np.array_equal(streamed.crops(numbers, corners, (4, 3)), memory.crops(numbers, corners, (4, 3)))


def test_batches_are_read_once_ahead_and_few_shards_are_held(
    split: tuple[Streamed, Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = Shard.read
    monkeypatch.setattr(Shard, "read", lambda shard, *rest: reads.append(shard.uri) or read(shard, *rest))  # type: ignore[func-returns-value]
    feed, memory = split[0].load(), split[1]
    seen = []
    for numbers, points in feed.batches(4, seed=0, epoch=0, rank=0, world=1):
        assert np.array_equal(feed.rows(numbers, "image"), memory.rows(numbers, "image"))
        assert points.shape == (4, 2)
        assert len(feed.window) <= 2 * WINDOW
        seen += numbers.tolist()
    assert len(set(seen)) == len(seen) == len(feed) // 4 * 4
    assert len(set(reads)) == len(reads) == sum(size > 0 for size in SIZES)


def test_an_epoch_is_resumed_without_reading_what_came_before(
    split: tuple[Streamed, Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [numbers.tolist() for numbers, _ in split[0].load().batches(4, 0, 0, 0, 1)]
    reads: list[str] = []
    read = Shard.read
    monkeypatch.setattr(Shard, "read", lambda shard, *rest: reads.append(shard.uri) or read(shard, *rest))  # type: ignore[func-returns-value]
    feed = split[0].load()
    rest = []
    for numbers, _ in feed.batches(4, 0, 0, 0, 1, first=len(whole) - 1):
        feed.rows(numbers, "image")
        rest.append(numbers.tolist())
    feed.thread.shutdown()
    assert rest == whole[-1:]
    assert len(reads) <= 2 * WINDOW - 2  # of ten


def test_a_sample_is_of_all_parts_of_the_split_but_of_few_shards(
    split: tuple[Streamed, Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oasisgen.data.stream.SAMPLED", 3)
    feed: StreamedFeed = split[0].load()
    numbers = feed.sample(6)
    assert len(numbers) == len(set(numbers)) == 6
    assert len(set(np.searchsorted(feed.ends, numbers, side="right"))) == 3
    assert (numbers[0], numbers[-1]) == (0, len(feed) - 1)
    assert len(set(feed.sample(30))) == 30
    for count in (0, len(feed), 99):
        assert np.array_equal(feed.sample(count), np.arange(len(feed)))


def test_a_shard_that_changed_is_an_error_where_its_rows_are_due(split: tuple[Streamed, Feed], tmp_path: Path) -> None:
    file = tmp_path / "part.parquet"
    file.write_bytes(Path(split[0].shards[0].uri).read_bytes() + b"\0")
    changed = replace(split[0], shards=(replace(split[0].shards[0], uri=str(file)), *split[0].shards[1:]))
    feed = changed.load()
    assert feed.rows(np.arange(5, 8), "level").tolist() == [0, 1, 2]  # of the next shard
    with pytest.raises(InvalidFile, match=r"part\.parquet has changed"):
        feed.column("level")
    ahead = ((numbers, feed.rows(numbers, "level")) for numbers, _ in feed.batches(4, 0, 0, 0, 1))
    with pytest.raises(InvalidFile, match=r"part\.parquet has changed"):
        list(ahead)


def row_groups(streamed: Streamed, memory: Feed) -> RowGroupFeed:
    return RowGroupFeed(
        streamed, [{**block, "checksum": checksums(block.pop("image"))} for block in map(dict, memory.blocks)]
    )


def test_row_groups_have_the_rows_of_a_split_in_memory(split: tuple[Streamed, Feed]) -> None:
    streamed, memory = split
    feed = row_groups(streamed, memory)
    assert (len(feed), feed.image_size) == (len(memory), memory.image_size)
    numbers = np.random.default_rng(1).integers(0, len(memory), 2 * len(memory))  # some twice
    for name in ("image", "case", "level"):
        assert np.array_equal(feed.rows(numbers, name), memory.rows(numbers, name))
    assert np.array_equal(feed.column("case"), memory.column("case"))


def test_a_row_group_that_has_changed_or_is_missing_is_one_line(split: tuple[Streamed, Feed], tmp_path: Path) -> None:
    streamed, memory = split
    first, second = streamed.shards[1], streamed.shards[4]  # 3 and 4 rows
    feed = row_groups(
        replace(streamed, shards=(first, replace(second, uri=str(tmp_path / "moved")))),
        Feed([memory.blocks[1], memory.blocks[3]]),
    )
    assert np.array_equal(feed.rows(np.array([2]), "image"), memory.rows(np.array([7]), "image"))
    with pytest.raises(InvalidFile, match="moved is missing: has changed"):
        feed.rows(np.array([3]), "image")
    shutil.copy(streamed.shards[5].uri, tmp_path / "moved")  # of 4 rows too
    with pytest.raises(InvalidFile, match="moved has changed"):
        feed.rows(np.array([3]), "image")


def test_a_shard_that_is_replaced_or_damaged_while_it_is_read_is_one_line(
    split: tuple[Streamed, Feed], tmp_path: Path
) -> None:
    streamed, memory = split
    file, whole = tmp_path / "part.parquet", Path(streamed.shards[3].uri).read_bytes()  # 8 rows, 2 per row group
    source = replace(streamed, shards=(replace(streamed.shards[3], uri=str(file)),))
    table = tables.parse(whole, SCHEMA, "x")

    def with_images(images: list[bytes | None]) -> bytes:
        place = SCHEMA.get_field_index("image")
        return tables.to_bytes(table.set_column(place, SCHEMA.field("image"), pa.array(images, pa.binary())), 2)

    others = {
        "empty": b"",
        "truncated": whole[:100],
        "zeros": bytes(len(whole)),
        "fewer rows": tables.to_bytes(table.slice(0, 3), 2),
        "smaller images": with_images([b"x"] * 8),
        "no images": with_images([None] * 8),
    }
    for footer_is_known in (True, False):
        for what, data in others.items():
            file.write_bytes(whole)
            feed = row_groups(source, Feed([memory.blocks[2]]))
            if footer_is_known:
                assert np.array_equal(feed.rows(np.array([7]), "image"), memory.blocks[2]["image"][7:])
            file.write_bytes(data)
            with pytest.raises(InvalidFile, match=r"part\.parquet (has changed|is damaged)") as refused:
                feed.rows(np.array([7]), "image")
            assert "\n" not in str(refused.value), what


def test_storage_that_fails_while_a_row_group_is_read_is_told_from_a_changed_file(
    split: tuple[Streamed, Feed], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed, memory = split
    shard = replace(streamed.shards[3], uri=f"{s3}/part.parquet")
    storage.write_bytes(shard.uri, Path(streamed.shards[3].uri).read_bytes())
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        through = fs.S3FileSystem(endpoint_override=server.url, region="us-east-1")
        monkeypatch.setattr(storage, "resolve", lambda uri: (through, uri.removeprefix("s3://")))
        for footer_is_known in (True, False):
            feed = row_groups(replace(streamed, shards=(shard,)), Feed([memory.blocks[2]]))
            if footer_is_known:
                feed.footer(0)
            server.fault = lambda method, path: "403 AccessDenied" if method == "GET" else None
            with pytest.raises(StorageError, match=r"part\.parquet: these credentials may not read it"):
                feed.rows(np.array([7]), "image")
            server.fault = None
            assert np.array_equal(feed.rows(np.array([7]), "image"), memory.blocks[2]["image"][7:])
