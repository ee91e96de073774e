"""Pack folders of raw PNGs into Parquet shards; unusable files are rejected and listed."""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from oasisgen import documents, storage, tables
from oasisgen.config.data import IMAGE_SIZE
from oasisgen.config.folder import require_ours
from oasisgen.data import degenerate
from oasisgen.data.description import FILE, DataSetDescription, PackedPart, RejectedFile, SliceName, Split
from oasisgen.data.slices import SCHEMA
from oasisgen.data.sources import Survey, read_png, survey
from oasisgen.errors import StorageError, UserError
from oasisgen.lock import Lock, LockProof, lock, require_unlocked
from oasisgen.progress import Progress, say

SLICES_PER_PART = 1024
ROWS_PER_GROUP = 128
OPEN_FILES = 16  # concurrent reads per task, to hide an object store's latency
PAUSE_SECONDS = 5  # before the last attempt to read a file, after the client's own retries have failed
MARKS = FILE, "lock.json"  # either file shows that oasisgen wrote the folder; the lock comes first
PART = re.compile(r"part-\d{5}\.parquet")


def read_patiently(uri: str) -> bytes:
    """Read a file, with one retry after a pause in case storage is down. Raises FileNotFoundError and StorageError.

    Ray's `retry_exceptions` is no alternative: Ray Data rejects it since 2.64, and Ray retries without a pause.
    """
    try:
        return storage.read_bytes(uri)
    except StorageError:
        time.sleep(PAUSE_SECONDS)
        return storage.read_bytes(uri)


def pack_part(row: dict[str, Any]) -> dict[str, Any]:
    """Read, decode and write one part; returns its entry for `dataset.json`, JSON-encoded."""

    def load(path: str) -> np.ndarray | str:
        try:
            return read_png(read_patiently(storage.join(row["source"], path)))
        except ValueError as reason:  # from the decoder; an error of storage ends the job, which can be run again
            return str(reason)
        except FileNotFoundError:
            raise StorageError(f"{row['source']}/{path} was removed while it was being packed: pack again") from None

    entries = json.loads(row["entries"])
    with ThreadPoolExecutor(OPEN_FILES) as pool:
        images = list(pool.map(load, [path for path, _, _ in entries]))
    good = [
        {"case": case, "level": level, "height": IMAGE_SIZE, "width": IMAGE_SIZE, "image": image.tobytes()}
        for (_, case, level), image in zip(entries, images, strict=True)
        if isinstance(image, np.ndarray)
    ]
    data = tables.to_bytes(pa.Table.from_pylist(good, SCHEMA), ROWS_PER_GROUP)
    if row["lock"]:  # without a lock, the shard is only compared
        LockProof(**json.loads(row["lock"])).require()
        storage.write_bytes(storage.join(row["out"], row["split"], row["name"]), data)
    entry = {
        "split": row["split"],
        "part": {
            "name": row["name"],
            "slices": len(good),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        },
        "cases": Counter(slice_["case"] for slice_ in good),
        "levels": sorted({slice_["level"] for slice_ in good}),
        "pixels": [
            (case, level, degenerate.pixel_digest(image))
            for (_, case, level), image in zip(entries, images, strict=True)
            if isinstance(image, np.ndarray)
        ],
        "rejected": [
            {"file": path, "reason": image}
            for (path, _, _), image in zip(entries, images, strict=True)
            if isinstance(image, str)
        ],
    }
    return {"entry": json.dumps(entry)}


def _plan(
    slices: dict[str, list[tuple[str, str, int]]], source: str, out: str, lock: LockProof | None
) -> Iterable[dict[str, str]]:
    for split, entries in slices.items():
        for number, start in enumerate(range(0, len(entries), SLICES_PER_PART)):
            yield {
                "source": source,
                "out": out,
                "lock": json.dumps(asdict(lock)) if lock else "",
                "split": split,
                "name": f"part-{number:05d}.parquet",
                "entries": json.dumps(entries[start : start + SLICES_PER_PART]),
            }


def _pack_parts(found: Survey, source: str, out: str, lock: LockProof | None) -> Iterator[dict[str, Any]]:
    """Pack all parts with Ray; yields the entry of each finished part. Without a lock, nothing is written."""
    plan = list(_plan(found.slices, source, out, lock))
    for row in ray.data.from_items(plan, override_num_blocks=len(plan)).map(pack_part).iter_rows():
        yield json.loads(row["entry"])


def pack(source: str, out: str, strict: bool = False, dry_run: bool = False) -> DataSetDescription | None:
    """Pack `source` into a data set at `out`; returns its description.

    A finished data set of the same source is left unchanged. A dry run prints what it would do and returns None. Needs
    a connection to Ray. Raises UserError if storage cannot be used, the source is unusable, `out` holds another data
    set or is being packed by another job, or, with `strict`, if any file is rejected.
    """
    source, out = storage.absolute(source), storage.absolute(out)
    storage.check(source, write=False)
    storage.check(out, write=True)
    refuse_overlap(source, out)
    found = survey(source)
    for folder in sorted({path.rpartition("/")[0] for entries in found.slices.values() for path, _, _ in entries}):
        refuse_overlap(storage.join(source, folder), out)  # the folder may be a link
    require_ours(out, *MARKS)
    if storage.exists(storage.join(out, "config.json")):
        raise UserError(f"{out} is the folder of a run or a batch: use another --out")
    marker = storage.join(out, FILE)
    finished = storage.exists(marker)
    if finished:
        old = documents.read(marker, DataSetDescription)
        if old.source_fingerprint != found.fingerprint:
            raise UserError(f"{out} was packed from other files ({old.source}) than {source} has: use another --out")
        touched = old.source_times not in (None, found.times)  # None: an older version did not write it
        if touched and not dry_run and not same_content(found, source, old):
            raise UserError(f"files in {source} were changed after they were packed into {out}: use another --out")
        refuse_rejected(old.rejected, strict)
        if not dry_run:
            return old
    if dry_run:
        require_unlocked(out)
        for split, entries in found.slices.items():
            say("plan", f"{split}: {len(entries)} slices of {len({case for _, case, _ in entries})} cases")
        for file in found.rejected:
            say("plan", f"rejected {file.file}: {file.reason}")
        say("plan", f"{found.label_maps} label maps are skipped; a dry run opens no files")
        for line in degenerate.lines(old) if finished else ["packing will look for blank slices and equal pixels"]:
            say("plan", line)
        say("plan", f"the data set {'is finished' if finished else f'would be written to {out}'}")
        return None
    with lock(out) as held:
        return write_data_set(found, source, out, strict, held)


def same_content(found: Survey, source: str, old: DataSetDescription) -> bool:
    """Whether packing the files of a source again gives the shards listed in `old`; nothing is written."""
    say("pack", "the source's modification times have changed since it was packed: comparing its content")
    entries = _pack_parts(found, source, "", None)
    now = {(entry["split"], entry["part"]["name"], entry["part"]["sha256"]) for entry in entries}
    then = {(name, part.name, part.sha256) for name, split in old.splits.items() for part in split.parts}
    return now == then


def write_data_set(found: Survey, source: str, out: str, strict: bool, held: Lock) -> DataSetDescription:
    """Write the shards of all splits, then `dataset.json`."""
    with Progress("pack", sum(map(len, found.slices.values())), "slices") as progress:
        entries = []
        for entry in _pack_parts(found, source, out, held.proof):
            entries.append(entry)
            progress.advance(entry["part"]["slices"] + len(entry["rejected"]))
    rejected = [*found.rejected, *(RejectedFile(**file) for entry in entries for file in entry["rejected"])]
    rejected.sort(key=lambda file: file.file)
    refuse_rejected(rejected, strict)
    held.renew()  # before anything is removed
    splits = {name: _split_of([entry for entry in entries if entry["split"] == name]) for name in found.slices}
    for name, split in splits.items():
        if not split.slices:
            raise UserError(f"no usable slice in {source}, split {name}: {rejected[0].file}: {rejected[0].reason}")
        remove_stale_parts(storage.join(out, name), {part.name for part in split.parts})
    digests = "".join(part.sha256 for split in splits.values() for part in split.parts)
    blank, equal = degenerate.find(
        (SliceName(entry["split"], case, level), pixels) for entry in entries for case, level, pixels in entry["pixels"]
    )
    description = DataSetDescription(
        source=source,
        source_fingerprint=found.fingerprint,
        source_times=found.times,
        fingerprint=hashlib.sha256(digests.encode()).hexdigest(),
        image_size=(IMAGE_SIZE, IMAGE_SIZE),
        splits=splits,
        label_maps_left_out=found.label_maps,
        rejected=tuple(rejected),
        blank=tuple(blank),
        equal=tuple(map(tuple, equal)),
    )
    held.commit(storage.join(out, FILE), (json.dumps(description.to_json(), indent=1) + "\n").encode())
    return description


def _split_of(entries: list[dict[str, Any]]) -> Split:
    """A split, from the entries that `pack_part` returned for its parts."""
    parts = sorted((PackedPart(**entry["part"]) for entry in entries), key=lambda part: part.name)
    cases = sum((Counter(entry["cases"]) for entry in entries), Counter())
    levels = sorted({level for entry in entries for level in entry["levels"]})
    return Split(sum(part.slices for part in parts), dict(sorted(cases.items())), tuple(levels), tuple(parts))


def refuse_overlap(source: str, out: str) -> None:
    """Raise UserError if the folders are the same, or one is inside the other: packing must not change its source."""
    a, b = (f"{storage.real(uri)}/" for uri in (source, out))
    if a.startswith(b) or b.startswith(a):
        raise UserError(f"--out {out} and --source {source} overlap: packing would mix its shards with the raw files")


def refuse_rejected(rejected: Sequence[RejectedFile], strict: bool) -> None:
    """Raise UserError if files were rejected and `strict` is set."""
    if strict and rejected:
        first = rejected[0]
        raise UserError(
            f"{len(rejected)} files rejected, {first.file} first: {first.reason}; fix them or drop --strict"
        )


def remove_stale_parts(folder: str, names: set[str]) -> None:
    """Remove parts left by an interrupted call that packed other files; nothing else."""
    for name, _ in list(storage.list_files(folder)):
        if PART.fullmatch(name) and name not in names:
            storage.remove(storage.join(folder, name))
