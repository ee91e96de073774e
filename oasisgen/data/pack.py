"""Pack the cases of a source into Parquet shards; unusable files are rejected and listed."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import ray.data

from oasisgen import documents, storage
from oasisgen.config.folder import differences, require_ours
from oasisgen.config.pack import PackConfig
from oasisgen.data import degenerate
from oasisgen.data.cases import Survey
from oasisgen.data.cut import EDGES
from oasisgen.data.description import (
    FILE,
    SCHEMA_VERSION,
    ByReason,
    DataSetDescription,
    RejectedFile,
    SliceName,
    Split,
)
from oasisgen.data.parts import WrittenPart, pack_part, plan_parts
from oasisgen.data.slices import FEATURES
from oasisgen.data.sources import survey
from oasisgen.errors import UserError
from oasisgen.lock import Lock, LockProof, lock, require_unlocked
from oasisgen.progress import Progress, say

PREVIEW = "preview.txt"  # beside a folder `preview`, which `reports.preview` writes
MARKS = FILE, "lock.json", PREVIEW  # each shows that oasisgen wrote the folder; the lock comes before any shard
PART = re.compile(r"part-\d{5}\.parquet")
NETWORK = re.compile(r"[0-9a-f]{12}\.json")  # in the folder FEATURES


def _write_parts(found: Survey, config: PackConfig, lock: LockProof | None) -> Iterator[WrittenPart]:
    """Pack all parts with Ray; yields each finished part. Without a lock, nothing is written."""
    plan = [{"plan": json.dumps(asdict(part))} for part in plan_parts(found, config, lock)]
    for row in ray.data.from_items(plan, override_num_blocks=len(plan)).map(pack_part).iter_rows():
        yield documents.parse(row["written"].encode(), WrittenPart, "a part's entry")


def pack(config: PackConfig) -> DataSetDescription | None:
    """Pack `config.source` into a data set at `config.out`; returns its description.

    A finished data set of the same source is left unchanged. A dry run prints what it would do and returns None. Needs
    a connection to Ray. Raises UserError if storage cannot be used, the source is unusable, `out` holds another data
    set or is being packed by another job, or, with `strict`, if any file is rejected.
    """
    config, found = survey_for(config)
    old = finished(config, found)
    if config.dry_run:
        require_unlocked(config.out)
        for line in planned(found, old, config.out):
            say("plan", line)
        return None
    if old:
        return old
    with lock(config.out) as held:  # another job may have finished the data set while this one waited
        return finished(config, found) or write_data_set(config, found, held)


def survey_for(config: PackConfig) -> tuple[PackConfig, Survey]:
    """The flags with absolute addresses, and what the source holds, if `out` may be written to.

    Raises as `pack` does for the source, and for an `out` that overlaps with it or that packing did not write.
    """
    config = config.absolute()
    source, out = config.source, config.out
    storage.check(source, write=False)
    storage.check(out, write=True)
    refuse_overlap(source, out)
    found = survey(config)
    for folder in sorted({file.path.rpartition("/")[0] for case in found.cases for file in case.files}):
        refuse_overlap(storage.join(source, folder), out)  # the folder may be a link
    require_ours(out, *MARKS, *([FEATURES] if has_network(out) else []))
    if storage.exists(storage.join(out, "config.json")):
        raise UserError(f"{out} is the folder of a run or a batch: use another --out")
    return config, found


def has_network(out: str) -> bool:
    """Whether training has kept a feature network in `out`, which therefore was a data set before."""
    return FEATURES in storage.list_folders(out) and any(
        NETWORK.fullmatch(name) for name in storage.list_names(storage.join(out, FEATURES))
    )


def finished(config: PackConfig, found: Survey) -> DataSetDescription | None:
    """The data set at `config.out`, or None. Raises UserError if it is not what packing would write."""
    source, out = config.source, config.out
    marker = storage.join(out, FILE)
    if not storage.exists(marker):
        return None
    old = documents.read(marker, DataSetDescription)
    if old.schema_version != SCHEMA_VERSION:
        raise UserError(
            f"{out} was packed by an older version of oasisgen, without subjects and label maps: use it as it is, or "
            "pack into another --out"
        )
    if old.source_fingerprint != found.fingerprint:
        raise UserError(f"{out} was packed from other files or tables ({old.source}) than now: use another --out")
    if changed := differences(old.settings, config.settings):
        raise UserError(f"{out} was packed with other flags ({'; '.join(changed)}): use another --out")
    touched = old.source_times not in (None, found.times)  # None: an older version did not write it
    if touched and not config.dry_run and not same_content(found, config, old):
        raise UserError(f"files in {source} were changed after they were packed into {out}: use another --out")
    refuse_rejected(old.rejected, config.strict)
    return old


def planned(found: Survey, old: DataSetDescription | None, out: str) -> Iterator[str]:
    """What a dry run prints: what was found at the source, and what packing it would do."""
    for split, cases in found.split_cases().items():
        yield f"{split}: {sum(case.count for case in cases)} slices of {len(cases)} cases"
    for file in found.rejected:
        yield f"rejected {file.file}: {file.reason}"
    for unused in found.unused:
        yield unused.in_words("not used")
    yield from degenerate.lines(old) if old else ["packing will look for blank slices and equal pixels"]
    yield f"the data set {'is finished' if old else f'would be written to {out}'}"


def same_content(found: Survey, config: PackConfig, old: DataSetDescription) -> bool:
    """Whether packing the files of a source again gives the shards listed in `old`; nothing is written."""
    say("pack", "the source's modification times have changed since it was packed: comparing its content")
    now = {(each.split, each.part.name, each.part.sha256) for each in _write_parts(found, config, None)}
    then = {(name, part.name, part.sha256) for name, split in old.splits.items() for part in split.parts}
    return now == then


def write_data_set(config: PackConfig, found: Survey, held: Lock) -> DataSetDescription:
    """Write the shards of all splits, then `dataset.json`."""
    source, out = config.source, config.out
    with Progress("pack", sum(case.count for case in found.cases), "slices") as progress:
        parts = []
        for part in _write_parts(found, config, held.proof):
            parts.append(part)
            progress.advance(part.planned)
    rejected = sorted(
        [*found.rejected, *(file for part in parts for file in part.rejected)], key=lambda file: file.file
    )
    refuse_rejected(rejected, config.strict)
    held.renew()  # before anything is removed
    splits = {name: _split_of([part for part in parts if part.split == name]) for name in found.split_cases()}
    for name, split in splits.items():
        if not split.slices:
            raise UserError(f"no usable slice in {source}, split {name}: {rejected[0].file}: {rejected[0].reason}")
        remove_stale_parts(storage.join(out, name), {part.name for part in split.parts})
    digests = "".join(part.sha256 for split in splits.values() for part in split.parts)
    blank, equal = degenerate.find(
        (SliceName(part.split, case, level), pixels) for part in parts for case, level, pixels in part.pixels
    )
    description = DataSetDescription(
        source=source,
        layout=found.layout,
        settings=config.settings,
        source_fingerprint=found.fingerprint,
        source_times=found.times,
        fingerprint=hashlib.sha256(digests.encode()).hexdigest(),
        image_size=found.image_size,
        edges=EDGES[config.axis] if found.layout == "volumes" else {},
        levels=1 + max(level for split in splits.values() for level in split.levels or ()),
        splits=splits,
        label_classes=found.label_classes,
        slices_without_labels=sum(part.without_labels for part in parts) if found.label_classes else 0,
        covariates=found.covariates,
        rejected=tuple(rejected),
        unused=found.unused,
        converted=_merged(parts),
        blank=tuple(blank),
        equal=tuple(map(tuple, equal)),
    )
    held.commit(storage.join(out, FILE), (json.dumps(description.to_json(), indent=1) + "\n").encode())
    return description


def _merged(parts: Sequence[WrittenPart]) -> tuple[ByReason, ...]:
    """What was converted in all parts, by reason."""
    groups: dict[str, list[ByReason]] = defaultdict(list)
    for part in sorted(parts, key=lambda part: (part.split, part.part.name)):
        for each in part.converted:
            groups[each.reason].append(each)
    return tuple(
        ByReason(reason, sum(each.count for each in of), of[0].examples) for reason, of in sorted(groups.items())
    )


def _split_of(written: Sequence[WrittenPart]) -> Split:
    """A split of these parts."""
    parts = sorted((each.part for each in written), key=lambda part: part.name)
    cases = sum((Counter(each.cases) for each in written), Counter())
    levels = sorted({level for each in written for level in each.levels})
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
