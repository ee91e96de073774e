"""The batch job: ids -> PNGs and a summary, part by part, the manifest last."""

import hashlib
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from PIL import Image
from ray.data import ActorPoolStrategy

from oasisgen import __version__, cluster, storage
from oasisgen.claim import claim, held_first, hold, require_free, require_same
from oasisgen.config import LEVELS, GenerateConfig, level_range
from oasisgen.data.feed import Stored, evenly_spaced, store
from oasisgen.data.slices import DataSet, open_data_set, read_slices
from oasisgen.errors import UserError
from oasisgen.evaluation import quality, report
from oasisgen.evaluation.comparison import Comparer
from oasisgen.models.bundle import Bundle, read_bundle, read_features
from oasisgen.progress import Progress, say, size
from oasisgen.sampling.png import PngWriter
from oasisgen.sampling.sample import GROUP, Sampler

IDS_PER_PART = 1000
PNG_BYTES = 19_000  # of a slice, about
PIECES_PER_BLOCK = 4  # groups that one task samples: few, so that little is in memory at once
FLOOR_SLICES = 64, 1120  # fewest and most held-out slices measured as if they were synthetic; between: the count
SUMMARY = pa.schema(
    [
        ("id", pa.int64()),
        ("level", pa.int16()),
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("ssim_real", pa.float32()),
        ("ssim_train_max", pa.float32()),
        ("nearest_case", pa.string()),
        ("nearest_level", pa.int16()),
        ("copy_ratio", pa.float32()),
        ("codes_in_use", pa.int32()),
    ]
)


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


def generate(config: GenerateConfig) -> dict[str, Any] | None:
    """Make slices 0 … count-1 and everything that belongs to a batch; returns what `summary.json` says.

    Complete parts are left as they are, and so is a complete batch. A dry run says what it would do and returns None.
    Needs a connected Ray. Raises UserError, before anything long has started, for storage that may not be used, an
    unusable bundle or data set, too few free CPUs, and a batch of that name with another request or still being made.
    """
    out, levels = storage.absolute(config.out), level_range(config.levels)
    storage.check(out, write=True)
    bundle = read_bundle(config.model)
    if levels != list(range(LEVELS)) and not bundle.prior.conditional:
        raise UserError(f"model {bundle.uri} does not know levels: leave out --levels")
    reference = open_reference_data(bundle, config.data)
    request = {
        "model": bundle.digest,
        "base_seed": config.base_seed,
        "count": config.count,
        "levels": levels,
        "data_fingerprint": reference.fingerprint,
    }
    require_same(out, request)
    finished = storage.exists(storage.join(out, "manifest.json"))
    parts = {start: min(start + IDS_PER_PART, config.count) for start in range(0, config.count, IDS_PER_PART)}
    if not finished:
        need = 2 * cluster.TASK_CPUS + cluster.ACTOR_CPUS
        with held_first(out):
            cluster.require_free("CPU", need, "sampler, comparer and writer", "add a node")
        cluster.require_store(reference.pixels("train", "validate"), cluster.ACTOR_CPUS)
    if config.dry_run:
        require_free(out)
        done = "finished" if finished else f"{sum(storage.exists(part_uri(out, start)) for start in parts)} made"
        say("plan", f"model {bundle.digest}")
        say("plan", f"{config.count} slices in {len(parts)} parts, {done}, about {size(config.count * PNG_BYTES)}")
        say("plan", f"measured against {reference.uri}, {reference.count('train')} training slices")
        say("plan", f"to {out}; {cluster.free()['CPU']:g} CPUs are free")
        return None
    claim(out, request)
    if finished:
        return storage.read_json(storage.join(out, "summary.json"))
    with hold(out):
        return make_batch(bundle, reference, request, parts, out)


def make_batch(
    bundle: Bundle, reference: DataSet, request: dict[str, Any], parts: dict[int, int], out: str
) -> dict[str, Any]:
    """Make the `parts` {start: end} that are missing, then summary, report and, last, the manifest."""
    started = time.monotonic()
    base_seed, levels, count = request["base_seed"], request["levels"], request["count"]
    train, held_out = (store(read_slices(reference, split)) for split in ("train", "validate"))
    missing = {start: end for start, end in parts.items() if not storage.exists(part_uri(out, start))}
    with Progress("generate", sum(end - start for start, end in missing.items()), "slices") as progress:
        for part in make_parts(bundle, base_seed, levels, out, missing, train, held_out, progress):
            storage.write_table(part_uri(out, part["id"][0].as_py()), part, IDS_PER_PART)
    floor = measure_floor(train, held_out, base_seed, np.resize(levels, np.clip(count, *FLOOR_SLICES)))

    digests = {start: hashlib.sha256(storage.read_bytes(part_uri(out, start))).hexdigest() for start in parts}
    slices = storage.read_table(storage.join(out, "summary"))
    load = partial(read_features, bundle.uri)
    measures = quality.mean_measures(slices, floor)
    measures |= quality.measure(load, written_slices(out, slices), levels, train.load(), held_out.load())
    summary = {
        "measures": measures,
        **counts(slices),
        **request,
        "data": reference.uri,
        "features": bundle.config["files"]["features.safetensors"],
        "seconds": round(time.monotonic() - started),
    }
    storage.write_text(storage.join(out, "summary.json"), json.dumps(summary, indent=2, allow_nan=False) + "\n")
    report.write_batch_report(out, summary, slices, floor, train.load())
    manifest = {
        **request,
        "ids": [0, count],
        "version": __version__,
        "parts": [
            {"name": part_uri("", start), "ids": [start, end], "sha256": digests[start]} for start, end in parts.items()
        ],
    }
    storage.write_text(storage.join(out, "manifest.json"), json.dumps(manifest, indent=2) + "\n")
    return summary


def part_uri(out: str, start: int) -> str:
    """The summary of the part that starts at an id."""
    return storage.join(out, "summary", f"part-{start // IDS_PER_PART:05d}.parquet")


def make_parts(
    bundle: Bundle,
    base_seed: int,
    levels: list[int],
    out: str,
    missing: dict[int, int],
    train: Stored,
    held_out: Stored,
    progress: Progress,
) -> Iterator[pa.Table]:
    """Sample, compare and write the slices of parts {start: end}; yields a part's summary once its PNGs are written."""
    pieces = [
        {"first": first, "end": min(first // GROUP * GROUP + GROUP, end)}
        for start, end in missing.items()
        for first in [start, *range(start // GROUP * GROUP + GROUP, end, GROUP)]
    ]
    if not pieces:
        return
    rows = (
        ray.data.from_items(pieces, override_num_blocks=1 + len(pieces) // PIECES_PER_BLOCK)
        .map_batches(
            Sampler,
            fn_constructor_args=(bundle.uri, base_seed, levels),
            batch_size=1,
            num_cpus=cluster.TASK_CPUS,
            num_gpus=1 if cluster.gpus() else 0,
            compute=ActorPoolStrategy(size=1),
            runtime_env={"env_vars": cluster.MALLOC},
        )
        .map_batches(
            Comparer,
            fn_constructor_args=(train, held_out, base_seed),
            batch_size=GROUP,
            **cluster.pool(),
        )
        .map_batches(PngWriter(out, bundle.digest, base_seed), batch_size=GROUP, **cluster.tasks())
    )
    pending: dict[int, list[pa.Table]] = {start: [] for start in missing}
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(batch, pa.Table)
        table = batch.select(SUMMARY.names).cast(SUMMARY)
        progress.advance(len(table))
        starts = table["id"].to_numpy() // IDS_PER_PART * IDS_PER_PART
        for start in np.unique(starts):
            pending[start].append(table.filter(starts == start))
            if sum(map(len, pending[start])) == missing[start] - start:
                yield pa.concat_tables(pending.pop(start)).sort_by("id").combine_chunks()
    assert not pending, f"parts without all their slices: {list(pending)}"


def measure_floor(train: Stored, held_out: Stored, base_seed: int, wanted: np.ndarray) -> pa.Table:
    """Held-out slices of the levels `wanted` (M,), as if they were synthetic: level and quality.PER_SLICE."""
    real = quality.chosen(held_out.load(), wanted)
    with Progress("floor", len(real.levels), "held-out slices") as progress:
        return quality.compare(real, train, held_out, base_seed, progress)


def written_slices(out: str, slices: pa.Table) -> quality.Slices:
    """Up to quality.MOST slices of a batch, evenly spaced, as they were written."""
    chosen = slices.take(evenly_spaced(len(slices), quality.MOST))

    def read(file: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(storage.read_bytes(storage.join(out, file)))))

    with ThreadPoolExecutor(16) as pool:  # S3 answers many at a time
        images = np.stack(list(pool.map(read, chosen["file"].to_pylist())))
    return quality.Slices(images, chosen["level"].to_numpy())


def counts(slices: pa.Table) -> dict[str, Any]:
    """Codes in use per slice, and slices per level."""
    levels = pc.value_counts(slices["level"]).to_pylist()
    return {
        "codes_in_use_mean": pc.mean(slices["codes_in_use"]).as_py(),
        "slices_per_level": {str(entry["values"]): entry["counts"] for entry in levels},
    }
