"""The batch job: make slices and their summary part by part, then measure, judge and seal the whole batch."""

import datetime
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from torch import nn

from oasisgen import __version__, cluster, documents, meters, storage
from oasisgen.config.folder import SOFTWARE, require_same_settings, require_same_software, write_settings
from oasisgen.config.generate import MOST_IDS, GenerateConfig
from oasisgen.config.ranges import disjoint_ranges, number_ranges
from oasisgen.data.slices import DataSet
from oasisgen.errors import UserError
from oasisgen.lock import Lock, lock, require_unlocked, unless_locked
from oasisgen.models import inception
from oasisgen.models.bundle import Bundle, read_bundle, read_features, read_vqvae
from oasisgen.pipelines.plan import plan_batch
from oasisgen.pipelines.slices import MOST_TRIED, BatchJob, make_slices
from oasisgen.progress import say
from oasisgen.quality import summary as summaries
from oasisgen.quality.batch import score_batch
from oasisgen.quality.gate import judge, limits
from oasisgen.quality.history import last_released, name_of, read_batches, root_of
from oasisgen.quality.reference import choose, open_reference_data_set, read_reference_data, store_bytes
from oasisgen.quality.rows import read_rows
from oasisgen.quality.summary import BatchSummary, Seconds, read_summary
from oasisgen.reports.batch import write_batch_report
from oasisgen.reports.index import write_index
from oasisgen.sampling import manifest as manifests
from oasisgen.sampling.ids import levels_of_ranges
from oasisgen.sampling.levels import require_levels, require_trained_levels
from oasisgen.sampling.manifest import BatchPart, Manifest, is_complete
from oasisgen.sampling.request import BatchRequest


def generate(config: GenerateConfig) -> BatchSummary | None:
    """Make the requested slices and all other files of a batch; returns its summary.

    Complete parts are left as they are, and so is a complete batch. A dry run says what it would do and returns None.
    Needs a connected Ray. Raises UserError, before anything long has started, for storage that may not be used, an
    unusable bundle or data set, too few free CPUs, and a batch of that name that was requested with other settings or
    is still being made.
    """
    out = storage.absolute(config.out)
    storage.check(out, write=True)
    bundle = read_bundle(config.model)
    levels = requested_levels(config, bundle)
    data = open_reference_data_set(bundle, config.data) if config.measure else None
    weights = storage.absolute(config.inception) if config.inception else None
    inception_digest = inception.digest(weights) if weights else None
    require_trained_levels(levels, bundle)
    if data:
        bundle.require_shape(data.uri, data.shape)
        require_levels(levels, data)
    request = make_request(config, bundle, levels, data, inception_digest)
    require_same_settings(out, request.to_json())
    finished = is_complete(out)
    if not finished:
        require_same_software(out)
        actors = require_room(config, data)
    if config.dry_run:
        require_unlocked(out)
        feed = choose(data) if data else "memory"
        for line in plan_batch(request, bundle.shape, data, out, finished, cluster.free(), feed):
            say("plan", line)
        return None
    write_settings(out, request.to_json())
    if not finished:
        read = partial(inception.read_inception, weights) if weights else partial(read_features, bundle.uri)
        load_features = partial(read, expected=inception_digest or bundle.digest)
        with lock(out) as held:
            if not is_complete(out):  # another job may have finished the batch while this one waited
                return make_batch(BatchJob(out, request, bundle, actors), data, load_features, held)
    if root := root_of(out):
        write_index(root)  # the job that made the batch may have been killed before it did
    return read_summary(out)


def requested_levels(config: GenerateConfig, bundle: Bundle) -> list[int]:
    """The levels of the slices.

    Raises UserError if levels are requested that the model does not know.
    """
    known = bundle.shape.levels
    if config.ids:
        return levels_of_ranges(disjoint_ranges("ids", config.ids, MOST_IDS), known)
    if config.levels is None:
        return bundle.trained_levels
    try:
        levels = number_ranges("levels", config.levels, known)
    except ValueError as error:
        raise UserError(f"{error}, the levels of model {bundle.uri}") from None
    if levels != list(range(known)) and not bundle.prior.conditional:
        raise UserError(f"model {bundle.uri} does not know levels: leave out --levels")
    return levels


def make_request(
    config: GenerateConfig, bundle: Bundle, levels: list[int], data: DataSet | None, inception_digest: str | None
) -> BatchRequest:
    """The request that the flags describe, with the digests of everything that slices and measures depend on."""
    out = storage.absolute(config.out)
    given = disjoint_ranges("ids", config.ids, MOST_IDS) if config.ids else ()
    return BatchRequest(
        model=bundle.digest,
        base_seed=seed_of(out) if config.base_seed is None else config.base_seed,
        count=sum(map(len, given)) if given else config.count,
        levels=tuple(levels),
        ids=config.ids,
        precision=config.precision,
        format=config.format,
        reject=config.reject,
        part_size=config.part_size,
        label_classes=bundle.described.label_classes if config.labels else (),
        label_subjects=bundle.label_subjects if config.labels else 0,
        data_fingerprint=data.fingerprint if data else None,
        inception=inception_digest,
        gate=config.gate,
        software=SOFTWARE,
    )


def seed_of(out: str) -> int:
    """The base seed of a batch for which none is given: that of its first start, or else one derived from its name.

    So the batches of two nights differ, whatever folders they lie in, and a batch that was moved can be continued.
    """
    with suppress(FileNotFoundError):
        begun = documents.read(storage.join(out, "config.json"), dict).get("base_seed")
        if isinstance(begun, int) and 0 <= begun < 2**63:
            return begun
    return int.from_bytes(hashlib.sha256(name_of(out).encode()).digest()[:4])


def require_room(config: GenerateConfig, data: DataSet | None) -> cluster.Actors:
    """The actors for samplers and feature extractors. Raises UserError if the cluster has no room for them."""
    with unless_locked(storage.absolute(config.out)):
        minutes = 0 if config.dry_run else config.wait_minutes
        actors = cluster.actors(config.gpus_per_sampler, minutes, "--gpus-per-sampler")
        cluster.require_actors(actors)
    if data:
        cluster.require_store(store_bytes(data, choose(data)), cluster.ACTOR_CPUS)
    return actors


def make_batch(job: BatchJob, data: DataSet | None, load_features: Callable[[], nn.Module], held: Lock) -> BatchSummary:
    """Make the missing parts, then summary, report, manifest and the page of all batches.

    `data` is the data set that the batch is compared with; None if it is not measured. `load_features` reads the
    network that embeds slices for FID and its kin.
    """
    started = time.monotonic()
    out, request = job.out, job.request
    real = read_reference_data(data, request, choose(data)) if data else None
    least = limits(real.scores, request.reject) if real else {}
    compared = time.monotonic()
    parts, made = make_slices(job, real, least, held)
    all_made = time.monotonic()

    suspect = limits(real.scores, "copies")["copy_ratio"] if real else None
    rows = read_rows(out, parts, bool(request.label_classes), suspect)
    totals = rows.totals
    load_vqvae = partial(read_vqvae, job.bundle.uri, expected=job.bundle.digest)
    scores, measured_on = (
        score_batch(load_features, load_vqvae, request, real, rows, out, job.actors) if real else ({}, 0)
    )
    root = root_of(out)
    features = request.inception or job.bundle.described.files["features.safetensors"]
    others = read_batches(root) if root else []
    last = last_released(others, request, features, but=out.rpartition("/")[2])
    reasons = judge(scores, request.gate, last.summary.scores if last else None)
    if totals.rows < request.count:
        reasons.insert(0, f"only {totals.rows} slices were left of {MOST_TRIED * request.count} tried")
    summary = BatchSummary(
        verdict="quarantined" if reasons else "released",
        reasons=tuple(reasons),
        compared_with=last.name if last else None,
        scores=scores,
        measured_on=measured_on,
        slices=totals.rows,
        rejected=sum(part.rejected for part in parts),
        codes_in_use_mean=totals.mean("codes_in_use"),
        slices_per_level={str(level): count for level, count in totals.per_level.items()},
        request=request,
        data=data.uri if data else None,
        features=features,
        devices=tuple(sorted(totals.devices)),
        version=__version__,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=Seconds(
            reference=round(compared - started),
            slices=round(all_made - compared),
            measures=round(time.monotonic() - all_made),
        ),
        made=made,
    )
    scored, train = (real.scores, real.train.load()) if real else (None, None)
    report = partial(write_batch_report, out, summary, rows, scored, train, job.bundle.shape.image_size)
    seal(out, summary, parts, held, report)
    if root:
        write_index(root, others)
    return summary


def seal(out: str, summary: BatchSummary, parts: list[BatchPart], held: Lock, write_report: Callable[[], None]) -> None:
    """Write `summary.json`, the report and, last, `manifest.json`, which makes the batch complete."""
    meters.count_batch(summary.verdict)
    written = (json.dumps(summary.to_json(), indent=2, allow_nan=False) + "\n").encode()
    held.write(storage.join(out, summaries.FILE), written)
    write_report()
    manifest = Manifest(verdict=summary.verdict, request=summary.request, version=__version__, parts=tuple(parts))
    held.commit(storage.join(out, manifests.FILE), (json.dumps(manifest.to_json(), indent=2) + "\n").encode())
