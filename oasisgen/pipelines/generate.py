"""The batch job: ids -> slices and a summary, part by part; then the whole is measured, judged, and sealed."""

import datetime
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
from torch import nn

from oasisgen import __version__, cluster, documents, meters, storage, tables
from oasisgen.config.data import LEVELS
from oasisgen.config.folder import SOFTWARE, require_same_settings, require_same_software, write_settings
from oasisgen.config.generate import MOST_IDS, GateConfig, GenerateConfig
from oasisgen.config.ranges import number_ranges
from oasisgen.data.slices import DataSet
from oasisgen.errors import UserError
from oasisgen.lock import Lock, lock, require_unlocked, unless_locked
from oasisgen.models import inception
from oasisgen.models.bundle import Bundle, read_bundle, read_features
from oasisgen.pipelines.slices import MOST_TRIED, make_slices
from oasisgen.progress import say, size
from oasisgen.quality.batch import counts, score_batch
from oasisgen.quality.gate import judge, limits
from oasisgen.quality.history import last_released, name_of, root_of
from oasisgen.quality.measures import read_scores
from oasisgen.quality.reference import open_reference_data, read_references
from oasisgen.reports.batch import write_batch_report
from oasisgen.reports.index import write_index
from oasisgen.sampling.ids import level_of
from oasisgen.sampling.levels import require_levels, require_trained_levels
from oasisgen.sampling.parts import SUMMARY, first_parts, part_uri

PNG_BYTES = 19_000  # of a slice, about


def seed_of(out: str) -> int:
    """The base seed of a batch for which none is given: the one it was begun with, else the one its name stands for.

    So two batches differ, in whatever folders they lie, and a batch that is moved goes on.
    """
    with suppress(FileNotFoundError):
        begun = documents.read(storage.join(out, "config.json"), dict).get("base_seed")
        if isinstance(begun, int) and 0 <= begun < 2**63:
            return begun
    return int.from_bytes(hashlib.sha256(name_of(out).encode()).digest()[:4])


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
    require_same_settings(out, request)
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
    write_settings(out, request)
    if finished:
        if root := root_of(out):
            write_index(root)  # the job that made the batch may have been killed before it did
        return dict(documents.read(storage.join(out, "summary.json"), documents.Summary))
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
    """Make the parts that are missing; then summary, report, the page of all batches and, last, the manifest.

    `load` reads the network whose features fidelity is measured by; `actors` is what samplers and that network run on.
    """
    started = time.monotonic()
    references = read_references(data, request) if data else None
    least = limits(references.scores, request["reject"]) if references else {}
    measured = time.monotonic()
    parts = make_slices(bundle, request, references, least, out, held, actors)
    made = time.monotonic()

    slices = tables.read_folder(
        storage.join(out, "summary"), SUMMARY, [name for name in SUMMARY.names if name != "sha256"]
    )
    scores, compared = score_batch(load, request, references, slices, out, actors) if references else ({}, 0)
    root = root_of(out)
    last = last_released(root, request, but=out.rpartition("/")[2]) if root else None
    reasons = judge(scores, GateConfig(**request["gate"]), last and read_scores(last["measures"]))
    if len(slices) < request["count"]:
        reasons.insert(0, f"only {len(slices)} slices were left of {MOST_TRIED * request['count']} tried")
    verdict = "quarantined" if reasons else "released"
    meters.count_batch(verdict)
    summary = {
        "verdict": verdict,
        "reasons": reasons,
        "compared_with": last and last["name"],
        "measures": {key: score.to_json() for key, score in scores.items()},
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
    scored, train = (references.scores, references.train.load()) if references else (None, None)
    write_batch_report(out, summary, slices, scored, train)
    manifest = {"verdict": verdict, **request, "version": __version__, "parts": parts}
    held.commit(storage.join(out, "manifest.json"), (json.dumps(manifest, indent=2) + "\n").encode())
    if root:
        write_index(root)
    return summary
