"""The batch job: ids -> slices and a summary, part by part; then the whole is measured, judged, and sealed."""

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from torch import nn

from oasisgen import __version__, cluster, documents, meters, storage, tables
from oasisgen.claim import SOFTWARE, claim, require_same, require_same_software
from oasisgen.config import LEVELS, MOST_IDS, GateConfig, GenerateConfig, number_ranges
from oasisgen.data.feed import Stored, evenly_spaced, store
from oasisgen.data.slices import DataSet, open_data_set, read_slices
from oasisgen.errors import UserError
from oasisgen.evaluation import batch_report, inception, nights, quality, release
from oasisgen.evaluation.comparison import Comparer
from oasisgen.lock import Lock, lock, require_unlocked, unless_locked
from oasisgen.models.bundle import Bundle, read_bundle, read_features
from oasisgen.progress import Progress, say, size
from oasisgen.sampling import formats
from oasisgen.sampling.ids import GROUP, groups, level_of
from oasisgen.sampling.levels import require_levels, require_trained_levels
from oasisgen.sampling.parts import SUMMARY, entry_of, first_parts, part_uri, parts_between, read_images, write_part
from oasisgen.sampling.png import PngEncoder
from oasisgen.sampling.sample import Sampler

PNG_BYTES = 19_000  # of a slice, about
GROUPS_PER_BLOCK = 4  # that one task samples: few, so that little is in memory at once
FLOOR_SLICES = 64, 1120  # fewest and most held-out slices measured as if they were synthetic; between: the count
MOST_TRIED = 2  # times the count: a model whose slices are refused more often than not is no use


@dataclass(frozen=True)
class References:
    """The real slices that a batch is measured against."""

    train: Stored
    held_out: Stored
    floor: pa.Table  # held-out slices, as if they were synthetic: level and quality.PER_SLICE


def open_reference_data(bundle: Bundle, data: str | None) -> DataSet:
    """The data set a batch is measured against: `data`, or the one the model was trained on.

    Raises UserError where it is missing, is another one by now, or has too few cases to compare held-out with held-out.
    """
    trained = bundle.config["data"]
    try:
        reference = open_data_set(data or trained["uri"])
        cases = len(reference.splits["validate"]["cases"]) if reference.parts("validate") else 0
    except UserError as error:
        raise UserError(f"{error}; or name the data set to measure against with --data") from None
    if not data and reference.fingerprint != trained["fingerprint"]:
        raise UserError(f"{reference.uri} is not what the model was trained on any more: name a data set with --data")
    if cases < 2:
        raise UserError(
            f"{reference.uri} has {cases} case in validate: the floor needs at least 2; pack more, or --data"
        )
    return reference


def seed_of(out: str) -> int:
    """The base seed of a batch for which none is given: the one it was begun with, else the one its name stands for.

    So two nights differ, in whatever folders they lie, and a batch that is moved goes on.
    """
    with suppress(FileNotFoundError):
        begun = documents.read(storage.join(out, "config.json"), dict).get("base_seed")
        if isinstance(begun, int) and 0 <= begun < 2**63:
            return begun
    return int.from_bytes(hashlib.sha256(nights.name_of(out).encode()).digest()[:4])


def generate(config: GenerateConfig) -> dict[str, Any] | None:
    """Make the slices that are asked for and everything that belongs to a batch; returns what `summary.json` says.

    Complete parts are left as they are, and so is a complete batch. A dry run says what it would do and returns None.
    Needs a connected Ray. Raises UserError, before anything long has started, for storage that may not be used, an
    unusable bundle or data set, too few free CPUs, and a batch of that name with another request or still being made.
    """
    out, levels = storage.absolute(config.out), number_ranges("levels", config.levels, LEVELS)
    storage.check(out, write=True)
    bundle = read_bundle(config.model)
    if levels != list(range(LEVELS)) and not bundle.prior.conditional:
        raise UserError(f"model {bundle.uri} does not know levels: leave out --levels")
    reference = open_reference_data(bundle, config.data) if config.measure else None
    weights = storage.absolute(config.inception) if config.inception else None
    seen_with = inception.digest(weights) if weights else ""
    read = partial(inception.read_inception, weights) if weights else partial(read_features, bundle.uri)
    load = partial(read, expected=seen_with or bundle.digest)
    ids = number_ranges("ids", config.ids, MOST_IDS) if config.ids else []
    if ids:
        levels = np.unique(level_of(np.array(ids))).tolist()
    require_trained_levels(levels, bundle)
    if reference:
        require_levels(levels, reference)
    request = {
        "model": bundle.digest,
        "base_seed": seed_of(out) if config.base_seed is None else config.base_seed,
        "count": len(ids) or config.count,
        "levels": levels,
        "ids": config.ids,
        "precision": config.precision,
        "format": config.format,
        "reject": config.reject,
        "part_size": config.part_size,
        "data_fingerprint": reference.fingerprint if reference else None,
        "inception": seen_with or None,
        "gate": asdict(config.gate),
        "software": SOFTWARE,
    }
    require_same(out, request)
    finished = storage.exists(storage.join(out, "manifest.json"))
    if not finished:
        require_same_software(out)
        with unless_locked(out):
            minutes = 0 if config.dry_run else config.wait_minutes
            actors = cluster.actors(config.gpus_per_sampler, minutes, "--gpus-per-sampler")
            cluster.require_actors(actors)
        if reference:
            cluster.require_store(reference.pixels("train", "validate"), cluster.ACTOR_CPUS)
    if config.dry_run:
        require_unlocked(out)
        planned = list(first_parts(request))
        done = "finished" if finished else f"{sum(storage.exists(part_uri(out, n)) for n in range(len(planned)))} made"
        weight = size(sum(map(len, planned)) * PNG_BYTES)
        say("plan", f"model {bundle.digest}, base seed {request['base_seed']}")
        say("plan", f"{sum(map(len, planned))} slices in {len(planned)} parts, {done}, about {weight}")
        if reference:
            say("plan", f"measured against {reference.uri}, {reference.count('train')} training slices")
        say("plan", f"to {out}; {cluster.free()['CPU']:g} CPUs, {cluster.free()['GPU']:g} GPUs are free")
        return None
    claim(out, request)
    if finished:
        if root := nights.root_of(out):
            nights.write_index(root)  # the job that made the batch may have been killed before it did
        return documents.read(storage.join(out, "summary.json"), documents.Summary)
    with lock(out) as held:
        return make_batch(bundle, reference, load, request, out, held, actors)


def make_batch(
    bundle: Bundle,
    data: DataSet | None,
    load: Callable[[], nn.Module],
    request: dict[str, Any],
    out: str,
    held: Lock,
    actors: cluster.Actors,
) -> dict[str, Any]:
    """Make the parts that are missing; then summary, report, the page of all nights and, last, the manifest.

    `load` reads the network whose features fidelity is measured by; `actors` is what samplers and that network run on.
    """
    started = time.monotonic()
    references = read_references(data, request) if data else None
    least = release.limits(references.floor, request["reject"]) if references else {}
    measured = time.monotonic()
    parts = make_slices(bundle, request, references, least, out, held, actors)
    made = time.monotonic()

    slices = tables.read_folder(
        storage.join(out, "summary"), SUMMARY, [name for name in SUMMARY.names if name != "sha256"]
    )
    measures, compared = measure(load, request, references, slices, out, actors) if references else ({}, 0)
    root = nights.root_of(out)
    last = nights.last_released(root, request, but=out.rpartition("/")[2]) if root else None
    reasons = release.judge(measures, GateConfig(**request["gate"]), last and last["measures"])
    if len(slices) < request["count"]:
        reasons.insert(0, f"only {len(slices)} slices were left of {MOST_TRIED * request['count']} tried")
    verdict = "quarantined" if reasons else "released"
    meters.count_batch(verdict)
    summary = {
        "verdict": verdict,
        "reasons": reasons,
        "compared_with": last and last["name"],
        "measures": measures,
        "measured_on": compared,  # so many synthetic slices, and as many real ones
        "slices": len(slices),
        "rejected": sum(part["rejected"] for part in parts),
        **counts(slices),
        **request,
        "data": data and data.uri,
        "features": request["inception"] or bundle.config["files"]["features.safetensors"],
        "devices": sorted(pc.unique(slices["device"]).to_pylist()),
        "version": __version__,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": {  # of the last of the jobs that made the batch
            "floor": round(measured - started),
            "slices": round(made - measured),
            "measures": round(time.monotonic() - made),
        },
    }
    written = (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode()
    held.write(storage.join(out, "summary.json"), written)
    floor, train = (references.floor, references.train.load()) if references else (None, None)
    batch_report.write(out, summary, slices, floor, train)
    manifest = {"verdict": verdict, **request, "version": __version__, "parts": parts}
    held.commit(storage.join(out, "manifest.json"), (json.dumps(manifest, indent=2) + "\n").encode())
    if root:
        nights.write_index(root)
    return summary


def read_references(data: DataSet, request: dict[str, Any]) -> References:
    """Read the real slices, and measure the floor: what held-out slices score in the place of synthetic ones."""
    train, held_out = (store(read_slices(data, split)) for split in ("train", "validate"))
    # What is refused must not depend on how many are asked for.
    fewest, most = FLOOR_SLICES
    count = most if request["reject"] != "none" else int(np.clip(request["count"], fewest, most))
    real = quality.chosen(held_out.load(), np.resize(request["levels"], count), data.degenerate_in("validate"))
    if not len(real.levels):
        raise UserError(f"{data.uri} has no held-out slice of the levels asked for that is neither blank nor a copy")
    with Progress("floor", len(real.levels), "held-out slices") as progress:
        floor = quality.compare(real, train, held_out, request["base_seed"], progress)
    release.limits(floor, "copies")  # the share of suspected copies is always measured: rather no slices than no limit
    return References(train, held_out, floor)


def make_slices(
    bundle: Bundle,
    request: dict[str, Any],
    references: References | None,
    least: dict[str, float],
    out: str,
    held: Lock,
    actors: cluster.Actors,
) -> list[dict[str, Any]]:
    """Make what is missing of all parts, until as many slices as asked for are left; returns the manifest's `parts`."""
    count, tried = request["count"], 0
    entries: list[dict[str, Any]] = []
    planned = list(first_parts(request))
    while planned:
        numbered = dict(enumerate(planned, len(entries)))
        missing = {number: ids for number, ids in numbered.items() if not storage.exists(part_uri(out, number))}
        with Progress("generate", sum(map(len, missing.values())), "slices") as progress:
            for number, slices in make_parts(bundle, request, references, least, out, missing, actors, progress):
                write_part(out, number, request["format"], slices, held)
        entries += [entry_of(out, number, len(ids)) for number, ids in numbered.items()]
        tried += sum(map(len, planned))
        left = sum(entry["slices"] for entry in entries)
        more = 0 if request["ids"] else min(count - left, MOST_TRIED * count - tried)
        planned = list(parts_between(request, tried, tried + more))
    return entries


def make_parts(
    bundle: Bundle,
    request: dict[str, Any],
    references: References | None,
    least: dict[str, float],
    out: str,
    missing: dict[int, np.ndarray],
    actors: cluster.Actors,
    progress: Progress,
) -> Iterator[tuple[int, pa.Table]]:
    """Sample, compare and write the slices of some parts {number: ids}; yields a part once its PNGs are written."""
    pieces = [{"part": number, "group": group} for number, ids in missing.items() for group in groups(ids).tolist()]
    if not pieces:
        return
    rows = ray.data.from_items(pieces, override_num_blocks=1 + len(pieces) // GROUPS_PER_BLOCK).map_batches(
        Sampler,
        fn_constructor_args=(bundle.uri, request["base_seed"], request["precision"], bundle.digest),
        batch_size=1,
        **cluster.pool(actors),
    )
    compare: list[Any] = [Comparer(references.train, references.held_out, request["base_seed"])] if references else []
    for step in (
        *compare,
        release.Refuser(least),
        PngEncoder(bundle.digest, request["base_seed"]),
        formats.SliceWriter(out, request["format"]),
    ):
        rows = rows.map_batches(step, batch_size=GROUP, **cluster.tasks())
    pending: dict[int, list[pa.Table]] = {number: [] for number in missing}
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        progress.advance(len(batch))
        meters.show("generate", slices_per_second=progress.rate)
        for number in pc.unique(batch["part"]).to_pylist():
            pending[number].append(batch.filter(pc.equal(batch["part"], number)))
            if sum(map(len, pending[number])) == len(missing[number]):
                yield number, pa.concat_tables(pending.pop(number), promote_options="default").sort_by("id")
    assert not pending, f"parts without all their slices: {list(pending)}"


def measure(
    load: Callable[[], nn.Module],
    request: dict[str, Any],
    references: References,
    slices: pa.Table,
    out: str,
    actors: cluster.Actors,
) -> tuple[release.Measures, int]:
    """The batch in numbers, each beside its floor; and how many slices fidelity and variety were measured on."""
    if not len(slices):
        return {}, 0
    chosen = slices.take(evenly_spaced(len(slices), quality.MOST))
    images = np.stack(read_images(out, request["format"], chosen))
    train, held_out = (split.load() for split in (references.train, references.held_out))
    written = quality.Slices(images, chosen["level"].to_numpy())
    sets = quality.equal_sets(written, request["levels"], train, held_out)
    measures = quality.mean_measures(slices, references.floor) | quality.measure(load, sets, actors)
    return measures, len(sets.synthetic.levels)


def counts(slices: pa.Table) -> dict[str, Any]:
    """Codes in use per slice, and slices per level."""
    levels = pc.value_counts(slices["level"]).to_pylist()
    return {
        "codes_in_use_mean": pc.mean(slices["codes_in_use"]).as_py(),
        "slices_per_level": {str(entry["values"]): entry["counts"] for entry in levels},
    }
