"""Read the cases of one Parquet part and write it. Runs in Ray tasks."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from threading import Semaphore
from typing import Any

import numpy as np
import pyarrow as pa

from oasisgen import documents, storage, tables
from oasisgen.config.pack import PackConfig
from oasisgen.data import degenerate, oasis1, volumes
from oasisgen.data.cases import Case, Scan, Slice, SliceFile, Survey, Volume
from oasisgen.data.description import ByReason, Covariate, LabelClass, PackedPart, RejectedFile, by_reason
from oasisgen.data.fit import fit
from oasisgen.data.images import decode, decode_labels, silence_pillow
from oasisgen.data.labels import classes_of
from oasisgen.data.slices import columns_of
from oasisgen.data.tree import read_file
from oasisgen.lock import LockProof

SLICES_PER_PART = 1024  # or one case more
ROWS_PER_GROUP = 128
OPEN_FILES = 16  # concurrent reads per task, to hide an object store's latency
ONE_VOLUME = Semaphore()  # volumes take tens of megabytes: a process reads one at a time


@dataclass(frozen=True)
class PartPlan:
    """A part to write."""

    config: PackConfig
    lock: LockProof | None  # None: the part is only compared, and not written
    split: str
    name: str
    image_size: tuple[int, int]
    label_classes: tuple[LabelClass, ...]
    covariates: tuple[Covariate, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class WrittenPart:
    """A part that was written, and what `dataset.json` says of it."""

    split: str
    part: PackedPart
    cases: dict[str, int]  # case -> slices
    levels: tuple[int, ...]
    without_labels: int  # slices
    pixels: tuple[tuple[str, int, str], ...]  # case, level and digest of each slice
    rejected: tuple[RejectedFile, ...]
    converted: tuple[ByReason, ...]
    planned: int  # slices, those of rejected files too


def plan_parts(found: Survey, config: PackConfig, lock: LockProof | None) -> list[PartPlan]:
    """The parts of all splits. A part holds whole cases."""
    return [
        PartPlan(
            config,
            lock,
            split,
            f"part-{number:05d}.parquet",
            found.image_size,
            found.label_classes,
            found.covariates,
            tuple(group),
        )
        for split, cases in found.split_cases().items()
        for number, group in enumerate(_groups(cases))
    ]


def _groups(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Consecutive cases with SLICES_PER_PART slices, or just above."""
    group: list[Case] = []
    for case in cases:
        group.append(case)
        if sum(case.count for case in group) >= SLICES_PER_PART:
            yield group
            group = []
    if group:
        yield group


def pack_part(row: dict[str, str]) -> dict[str, str]:
    """Read and write a part: its PartPlan as JSON -> its WrittenPart as JSON."""
    silence_pillow()
    plan = documents.parse(row["plan"].encode(), PartPlan, "the plan of a part")
    results = read_cases(plan)
    slices = [(case, each) for case, each in results if isinstance(each, Slice)]
    schema = columns_of(plan.label_classes, plan.covariates)
    data = tables.to_bytes(
        pa.Table.from_pylist([_row(case, each, schema) for case, each in slices], schema), ROWS_PER_GROUP
    )
    if plan.lock:
        plan.lock.require()
        storage.write_bytes(storage.join(plan.config.out, plan.split, plan.name), data)
    written = WrittenPart(
        split=plan.split,
        part=PackedPart(plan.name, len(slices), len(data), hashlib.sha256(data).hexdigest()),
        cases=dict(Counter(case.case for case, _ in slices)),
        levels=tuple(sorted({each.level for _, each in slices})),
        without_labels=sum(each.labels is None for _, each in slices),
        pixels=tuple((case.case, each.level, degenerate.pixel_digest(each.image)) for case, each in slices),
        rejected=tuple(each for _, each in results if isinstance(each, RejectedFile)),
        converted=by_reason(
            (f"case {case.case} level {each.level}", reason) for case, each in slices for reason in each.converted
        ),
        planned=sum(case.count for case in plan.cases),
    )
    return {"written": json.dumps(asdict(written))}


def read_cases(plan: PartPlan) -> list[tuple[Case, Slice | RejectedFile]]:
    """Read the slices of a part's cases; a file that cannot be used gives the reason instead."""
    jobs = [(case, read) for case in plan.cases for read in _readings(plan, case)]
    with ThreadPoolExecutor(OPEN_FILES) as pool:
        results = pool.map(lambda job: job[1](), jobs)
        return [(case, each) for (case, _), of in zip(jobs, results, strict=True) for each in of]


def _row(case: Case, of: Slice, schema: pa.Schema) -> dict[str, Any]:
    height, width = of.image.shape
    row = {"case": case.case, "subject": case.subject, "level": of.level, "height": height, "width": width}
    row |= {"image": of.image.tobytes(), "labels": None if of.labels is None else of.labels.tobytes()}
    return {name: (case.covariates | row).get(name) for name in schema.names}


def _readings(plan: PartPlan, case: Case) -> Iterable[Callable[[], list[Slice | RejectedFile]]]:
    """Functions that read the slices of a case; they may run at the same time."""
    if case.volume:
        return [partial(_read_volume, plan, case.case, case.volume)]
    if case.scan:
        return [partial(_read_scan, plan, case.scan)]
    return [partial(_read_slice_file, plan, file) for file in case.slices]


def _read_volume(plan: PartPlan, case: str, volume: Volume) -> list[Slice | RejectedFile]:
    try:
        with ONE_VOLUME:
            return [*oasis1.read_scan(volume, partial(read_file, plan.config.source))]
    except ValueError as reason:
        return [RejectedFile(case, str(reason))]


def _read_scan(plan: PartPlan, scan: Scan) -> list[Slice | RejectedFile]:
    with ONE_VOLUME:
        return volumes.read_scan(scan, plan.config, plan.label_classes, partial(read_file, plan.config.source))


def _read_slice_file(plan: PartPlan, file: SliceFile) -> list[Slice | RejectedFile]:
    """The slice of an image file with its label map, or why it has none."""
    try:
        pixels, converted = decode(read_file(plan.config.source, file.image))
        image = fit(pixels, plan.image_size, plan.config.fit)
    except ValueError as reason:  # from the decoder; an error of storage ends the job, which can be run again
        return [RejectedFile(file.image.path, str(reason))]
    height, width = pixels.shape
    fitted = "" if pixels.shape == plan.image_size else f"{width} x {height} pixels, --fit {plan.config.fit}"
    notes = tuple(filter(None, (converted, fitted)))
    try:
        return [Slice(file.level, image, _labels(plan, file, pixels.shape), notes)]
    except ValueError as reason:
        assert file.labels
        return [Slice(file.level, image, None, notes), RejectedFile(file.labels.path, str(reason))]


def _labels(plan: PartPlan, file: SliceFile, shape: tuple[int, ...]) -> np.ndarray | None:
    """The label map of an image file of `shape`, as classes (H, W) uint8. Raises ValueError with the reason."""
    if not file.labels:
        return None
    values = decode_labels(read_file(plan.config.source, file.labels))
    if values.shape != shape:
        raise ValueError(f"{values.shape[1]} x {values.shape[0]} pixels, and its slice has {shape[1]} x {shape[0]}")
    return fit(classes_of(values, plan.label_classes), plan.image_size, plan.config.fit, labels=True)
