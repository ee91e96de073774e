"""Raw PNG folders -> packed Parquet shards; what cannot be used is set aside and named."""

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
OPEN_FILES = 16  # reads in flight per task: what hides an object store's latency
PAUSE_SECONDS = 5  # after a read that storage failed, for all that its client tried, and before the last one
MARKS = FILE, "lock.json"  # a data set is ours from the moment that its lock is taken
PART = re.compile(r"part-\d{5}\.parquet")


def read_patiently(uri: str) -> bytes:
    """The whole file, of a storage that may be out for a while. Raises FileNotFoundError and StorageError.

    Not by `retry_exceptions`: Ray Data takes it no more from 2.64 on, and Ray would retry without a pause.
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
        except ValueError as reason:  # the decoder's; what storage raises ends the job, which loses nothing
            return str(reason)
        except FileNotFoundError:
            raise StorageError(f"{row['source']}/{path} went away while it was being packed: pack again") from None

    entries = json.loads(row["entries"])
    with ThreadPoolExecutor(OPEN_FILES) as pool:
        images = list(pool.map(load, [path for path, _, _ in entries]))
    good = [
        {"case": case, "level": level, "height": IMAGE_SIZE, "width": IMAGE_SIZE, "image": image.tobytes()}
        for (_, case, level), image in zip(entries, images, strict=True)
        if isinstance(image, np.ndarray)
    ]
    data = tables.to_bytes(pa.Table.from_pylist(good, SCHEMA), ROWS_PER_GROUP)
    if row["lock"]:  # else it is only compared
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
    """Pack every part, with Ray; the entry of each as it is done. Without a lock nothing is written."""
    plan = list(_plan(found.slices, source, out, lock))
    for row in ray.data.from_items(plan, override_num_blocks=len(plan)).map(pack_part).iter_rows():
        yield json.loads(row["entry"])


def pack(source: str, out: str, strict: bool = False, dry_run: bool = False) -> DataSetDescription | None:
    """Pack `source` into a data set at `out`; returns what `dataset.json` says.

    A finished data set of the same source is left as it is. A dry run says what it would do and returns None. Needs a
    connected Ray. Raises UserError for storage that may not be used, an unusable source, another data set under that
    name, one being packed and, if `strict`, any rejected file.
    """
    source, out = storage.absolute(source), storage.absolute(out)
    storage.check(source, write=False)
    storage.check(out, write=True)
    refuse_overlap(source, out)
    found = survey(source)
    for folder in sorted({path.rpartition("/")[0] for entries in found.slices.values() for path, _, _ in entries}):
        refuse_overlap(storage.join(source, folder), out)  # which may be a link
    require_ours(out, *MARKS)
    if storage.exists(storage.join(out, "config.json")):
        raise UserError(f"{out} is the folder of a run or a batch: use another --out")
    marker = storage.join(out, FILE)
    finished = storage.exists(marker)
    if finished:
        old = documents.read(marker, DataSetDescription)
        if old.source_fingerprint != found.fingerprint:
            raise UserError(f"{out} was packed from {old.source} with other files than {source} has: use another --out")
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
        say("plan", f"{found.label_maps} label maps are left out; files are opened when packing")
        for line in degenerate.lines(old) if finished else ["blank slices and equal pixels are found when packing"]:
            say("plan", line)
        say("plan", f"the data set {'is finished' if finished else f'would be written to {out}'}")
        return None
    with lock(out) as held:
        return write_data_set(found, source, out, strict, held)


def same_content(found: Survey, source: str, old: DataSetDescription) -> bool:
    """Whether the files of a source give the very shards that `old` names; nothing is written."""
    say("pack", "files were written again since they were packed: comparing what they hold")
    entries = _pack_parts(found, source, "", None)
    now = {(entry["split"], entry["part"]["name"], entry["part"]["sha256"]) for entry in entries}
    then = {(name, part.name, part.sha256) for name, split in old.splits.items() for part in split.parts}
    return now == then


def write_data_set(found: Survey, source: str, out: str, strict: bool, held: Lock) -> DataSetDescription:
    """Write the shards of all splits and, last, `dataset.json`."""
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
    """A split, given what `pack_part` says of each of its parts."""
    parts = sorted((PackedPart(**entry["part"]) for entry in entries), key=lambda part: part.name)
    cases = sum((Counter(entry["cases"]) for entry in entries), Counter())
    levels = sorted({level for entry in entries for level in entry["levels"]})
    return Split(sum(part.slices for part in parts), dict(sorted(cases.items())), tuple(levels), tuple(parts))


def refuse_overlap(source: str, out: str) -> None:
    """Raise UserError if one of two folders lies in the other, or is the other: packing must not touch its source."""
    a, b = (f"{storage.real(uri)}/" for uri in (source, out))
    if a.startswith(b) or b.startswith(a):
        raise UserError(f"--out {out} and --source {source} overlap: packing would mix its shards with the raw files")


def refuse_rejected(rejected: Sequence[RejectedFile], strict: bool) -> None:
    """Raise UserError where files were rejected and `strict` forbids it."""
    if strict and rejected:
        first = rejected[0]
        raise UserError(
            f"{len(rejected)} files rejected, {first.file} first: {first.reason}; mend them or drop --strict"
        )


def remove_stale_parts(folder: str, names: set[str]) -> None:
    """Remove the parts that an interrupted call with other files left; nothing else."""
    for name, _ in list(storage.list_files(folder)):
        if PART.fullmatch(name) and name not in names:
            storage.remove(storage.join(folder, name))
