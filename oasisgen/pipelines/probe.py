"""The utility probe: what a batch with label maps is worth to someone who trains a segmenter."""

import dataclasses
import datetime
import io
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from PIL import Image

from oasisgen import __version__, cluster, storage, tables
from oasisgen.config.folder import SOFTWARE, require_same_settings, require_same_software, write_settings
from oasisgen.config.probe import ProbeConfig
from oasisgen.config.segmenter import SegmenterTraining
from oasisgen.data.feed import Stored, chunks, store
from oasisgen.data.pairs import Labelled, few_of, labelled, read_pairs
from oasisgen.data.slices import DataSet, open_data_set
from oasisgen.errors import UserError
from oasisgen.lock import Lock, lock, unless_locked
from oasisgen.models.scores import MeasuredData
from oasisgen.models.segmenter import require_monai
from oasisgen.progress import say
from oasisgen.quality import utility as utilities
from oasisgen.quality.history import root_of
from oasisgen.quality.segmentation import score_segmenters
from oasisgen.quality.summary import read_summary
from oasisgen.quality.utility import ADDED, BOTH, FEW, FEW_BOTH, REAL, SYNTHETIC, Arm, ArmScores, Utility
from oasisgen.reports.index import write_index
from oasisgen.reports.utility import write_utility_report
from oasisgen.sampling import formats, manifest
from oasisgen.sampling.parts import read_images, read_label_maps, read_listed, summary_schema
from oasisgen.sampling.request import BatchRequest
from oasisgen.training.segmenter import segmenter_of

READ_AT_ONCE = 256  # pairs of a batch: a block in the object store
FEW_SUBJECTS = 10  # of the case of few labels, for a batch whose label decoder has learned from all label maps


class ProbedBatch(NamedTuple):
    """A finished batch, and its rows."""

    uri: str
    digest: str  # of its manifest
    request: BatchRequest
    slices: pa.Table


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs that the arms use, in the object store."""

    synthetic: Stored
    real: Stored
    few: Stored | None
    held_out: Stored

    def of(self, arm: str) -> tuple[Stored | None, Stored | None]:
        """The synthetic and the real pairs of an arm, in the order in which its segmenter learns from them."""
        real = {REAL: self.real, BOTH: self.real, FEW: self.few, FEW_BOTH: self.few}.get(arm)
        return self.synthetic if arm in (SYNTHETIC, *ADDED) else None, real


def probe(config: ProbeConfig) -> tuple[str, Utility]:
    """Train a segmenter for each arm, score it on real held-out slices, and write `utility.json` and a report.

    Returns the folder of the probe, and what `utility.json` says. A finished probe is left unchanged, an interrupted
    one continues. Needs a connected Ray. Raises UserError for a batch or data set that cannot be probed, too few free
    CPUs or GPUs, and where `out` holds the probe of something else, or another job works there.
    """
    started = time.monotonic()
    require_monai()
    batch_uri = storage.absolute(config.batch)
    out = storage.absolute(config.out) if config.out else utilities.evaluation_of(batch_uri)
    if not out:
        raise UserError(f"{batch_uri} is not at <root>/batches/<name>: say with --out where its probe goes")
    storage.check(out, write=True)
    batch, data = open_batch(batch_uri, config.quarantined), open_real(config, batch_uri)
    require_same_kind(batch, data)
    if config.subjects is None:
        config = dataclasses.replace(config, subjects=batch.request.label_subjects or FEW_SUBJECTS)
    settings, written = settings_of(config, batch, data), storage.join(out, utilities.FILE)
    require_same_settings(out, settings)
    if not storage.exists(written):
        require_same_software(out)
    write_settings(out, settings)
    if not storage.exists(written):
        with unless_locked(out):
            cluster.require_workers(config.workers, config.cpus_per_worker, config.gpus_per_worker, config.wait_minutes)
        with lock(out) as held:
            if not storage.exists(written):  # another job may have finished while this one waited
                train_arms(config, batch, data, out, held, started)
    if root := root_of(batch_uri):
        write_index(root)
    return out, utilities.read_utility(out)


def open_batch(uri: str, quarantined: bool) -> ProbedBatch:
    """The batch at `uri`. Raises UserError unless it is finished, undamaged, released (or `quarantined` is set) and has
    label maps.
    """
    found = manifest.read_finished(uri)
    if found.verdict != "released" and not quarantined:
        raise UserError(f"batch {uri} is quarantined: probe it nevertheless with --quarantined")
    if not found.request.label_classes:
        raise UserError(
            f"batch {uri} has no label maps: generate one with a model that was trained on a data set with label maps"
        )
    columns = ["id", "level", "file", "labels_file"]
    slices = pa.concat_tables(
        [summary_schema(True).empty_table().select(columns), *(read_listed(uri, part, columns) for part in found.parts)]
    )
    if not len(slices):
        raise UserError(f"batch {uri} has no slices")
    return ProbedBatch(uri, manifest.digest(uri), found.request, slices)


def open_real(config: ProbeConfig, batch: str) -> DataSet:
    """The data set with the real pairs. Raises UserError if it is missing, or not the one the batch was compared with
    though none is named.
    """
    if config.data:
        return open_data_set(config.data)
    try:
        summary = read_summary(batch)
    except FileNotFoundError:
        raise UserError(f"{batch} has no summary.json: name the data set with real pairs by --data") from None
    if not summary.data:
        raise UserError(f"batch {batch} was not compared with a data set: name one with real pairs by --data")
    data = open_data_set(summary.data)
    if data.fingerprint != summary.request.data_fingerprint:
        raise UserError(f"{data.uri} has changed since the batch was compared with it: name a data set by --data")
    return data


def require_same_kind(batch: ProbedBatch, data: DataSet) -> None:
    """Raise UserError unless slices and label maps of the batch and of the data set are of the same kind."""
    ours, theirs = ([of.name for of in classes] for classes in (batch.request.label_classes, data.label_classes))
    if not theirs:
        raise UserError(f"data set {data.uri} has no label maps: there is nothing to compare a segmenter with")
    if ours != theirs:
        raise UserError(
            f"the label maps of batch {batch.uri} have the classes {', '.join(ours)}, those of data set {data.uri} "
            f"{', '.join(theirs)}: name the data set that the model was trained on with --data"
        )
    _, png = next(formats.read_pngs(batch.uri, batch.request.format, batch.slices.slice(0, 1)))
    try:
        width, height = Image.open(io.BytesIO(png or b""), formats=["PNG"]).size
    except (OSError, ValueError):
        raise UserError(f"batch {batch.uri} is damaged: see jobs/generate.py --verify {batch.uri}") from None
    if (height, width) != data.image_size:
        h, w = data.image_size
        raise UserError(
            f"the slices of batch {batch.uri} have {height} x {width} pixels, those of data set {data.uri} {h} x {w}: "
            "name the data set that the model was trained on with --data"
        )


def settings_of(config: ProbeConfig, batch: ProbedBatch, data: DataSet) -> dict[str, Any]:
    """What decides the result of a probe, for its `config.json`."""
    names = ("pairs", "subjects", "validate_slices", "seed")
    return {
        "manifest": batch.digest,
        "data_fingerprint": data.fingerprint,
        **{name: getattr(config, name) for name in names},
        "segmenter": dataclasses.asdict(config.segmenter),
        "software": SOFTWARE,
    }


def draw(rows: int, count: int, seed: int) -> np.ndarray:
    """`count` of `rows` row numbers at random, or all there are, in order."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:count])


def pairs_of(config: ProbeConfig, batch: ProbedBatch, data: DataSet) -> Pairs:
    """Draw the pairs of all arms, as many real as synthetic ones, and read them into the object store.

    Raises UserError if there are fewer than a batch of the segmenter, or no held-out pair.
    """
    train, held_out = (labelled(data, split) for split in ("train", "validate"))
    count, batch_size = min(config.pairs, len(train.cases), len(batch.slices)), config.segmenter.batch_size
    if count < batch_size or not len(held_out.cases):
        raise UserError(
            f"there are {len(train.cases)} real pairs in train, {len(batch.slices)} synthetic ones, and "
            f"{len(held_out.cases)} real ones in validate: needed are {batch_size} (--segmenter.batch-size) of the "
            "first two, and one of the last"
        )
    few = few_of(train.subjects, config.subjects, "subjects") if config.subjects else None
    there = len(held_out.cases)
    scored = draw(there, config.validate_slices or there, config.seed)
    slices = 2 * count + len(scored) + (0 if few is None else len(few))
    cluster.require_store(2 * slices * int(np.prod(data.image_size)), config.cpus_per_worker, config.gpus_per_worker)

    def real(split: str, of: Labelled, rows: np.ndarray) -> Stored:
        return store(read_pairs(data, split, of.names(rows)))

    say("read", f"{count} synthetic pairs, {count} real ones, {len(scored)} held-out ones")
    return Pairs(
        read_synthetic(batch, draw(len(batch.slices), count, config.seed), data),
        real("train", train, draw(len(train.cases), count, config.seed)),
        None if few is None else real("train", train, few),
        real("validate", held_out, scored),
    )


def read_synthetic(batch: ProbedBatch, rows: np.ndarray, data: DataSet) -> Stored:
    """Some pairs of a batch. Raises InvalidFile if one is missing or damaged."""
    blocks = []
    for some in chunks(rows, READ_AT_ONCE):
        slices, kind = batch.slices.take(some), batch.request.format
        images, labels = (
            np.stack(read(batch.uri, kind, slices, data.image_size)) for read in (read_images, read_label_maps)
        )
        if labels.max() >= len(data.label_classes):
            raise UserError(f"batch {batch.uri} is damaged: a label map has class {labels.max()}")
        blocks.append(ray.put({"image": images, "labels": labels}))
    return Stored(tuple(blocks))


def train_arms(config: ProbeConfig, batch: ProbedBatch, data: DataSet, out: str, held: Lock, started: float) -> None:
    """Train and score every arm that is not, then write the report and, last, `utility.json`."""
    pairs, arms = pairs_of(config, batch, data), {}
    names = (REAL, SYNTHETIC, BOTH, *((FEW, FEW_BOTH) if pairs.few else ()))
    score_arms(config, names, pairs, data, out, held)
    tables_of = {arm: tables.read(scores_at(out, arm), utilities.SCORES) for arm in names}
    for arm in names:
        of_synthetic, of_real = (len(part.load()) if part else 0 for part in pairs.of(arm))
        arms[arm] = ArmScores(of_real, of_synthetic, utilities.class_scores(tables_of[arm]))
    ratios = utilities.utility_of(tables_of[REAL], tables_of[SYNTHETIC])
    names_of = [of.name for of in data.label_classes[1:]]
    reasons = utilities.judge_utility(ratios, batch.request.gate.utility, names_of)
    c, first = config.segmenter, tables_of[REAL]
    result = Utility(
        verdict="quarantined" if reasons else "released",
        reasons=tuple(reasons),
        batch=batch.uri,
        manifest=batch.digest,
        data=MeasuredData(data.uri, data.fingerprint),
        subjects=config.subjects or 0,
        label_subjects=batch.request.label_subjects,
        held_out_slices=len(pairs.held_out.load()),
        held_out_subjects=len(first["subject"].unique()),
        steps=c.epochs * (arms[SYNTHETIC].synthetic // c.batch_size),
        batch_size=c.batch_size,
        seed=config.seed,
        utility=ratios,
        added={
            arm: utilities.added_by_synthetic(tables_of[arm], tables_of[without])
            for arm, without in ADDED.items()
            if arm in tables_of
        },
        arms=arms,
        version=__version__,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started),
    )
    held.renew()
    write_utility_report(out, result)
    written = json.dumps(dataclasses.asdict(result), indent=2, allow_nan=False) + "\n"
    held.commit(storage.join(out, utilities.FILE), written.encode())


def score_arms(config: ProbeConfig, arms: Sequence[Arm], pairs: Pairs, data: DataSet, out: str, held: Lock) -> None:
    """Write the SCORES of every arm that has none; its segmenter is trained first if it is not."""
    classes, draws, weights = [of.name for of in data.label_classes], len(pairs.synthetic.load()), {}
    for arm in arms:
        if storage.exists(scores_at(out, arm)):
            continue
        parts = [part for part in pairs.of(arm) if part]
        say("probe", f"arm {arm}: {sum(len(part.load()) for part in parts)} pairs")
        training = SegmenterTraining(
            storage.join(out, arm),
            **{name: getattr(config, name) for name in ("segmenter", "seed", "workers")},
            cpus_per_worker=config.cpus_per_worker,
            gpus_per_worker=config.gpus_per_worker,
        )
        weights[arm] = segmenter_of(training, parts, draws, len(classes), held.proof).state_dict()
    if weights:
        actors = cluster.Actors(min(1.0, config.gpus_per_worker), config.wait_minutes)
        scored = score_segmenters(config.segmenter, weights, pairs.held_out, classes, actors)
        for arm, scores in scored.items():
            held.write(scores_at(out, arm), tables.to_bytes(scores, len(scores)))


def scores_at(out: str, arm: Arm) -> str:
    """The URI of an arm's SCORES."""
    return storage.join(out, arm, "scores.parquet")
