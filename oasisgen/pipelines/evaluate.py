"""The evaluation job: how well a trained model reconstructs a split."""

import json
from dataclasses import asdict
from functools import partial

from oasisgen import cluster, documents, storage, tables
from oasisgen.config.folder import write_settings
from oasisgen.data.slices import DataSet
from oasisgen.lock import Commit, lock
from oasisgen.models.bundle import read_bundle, read_vqvae
from oasisgen.models.scores import ReconstructionScores
from oasisgen.quality.reconstruction import Evaluation, evaluate


def evaluate_bundle(
    bundle_uri: str, data: DataSet, split: str, out: str, gpus: float | None = None, wait_minutes: float = 0.0
) -> ReconstructionScores:
    """Evaluate a bundle, or the one of a run; returns what `<out>/evaluation.json` says, beside `slices.parquet`.

    `gpus` is the number of GPUs for each actor; None means one if the cluster has any. A finished evaluation is left
    unchanged.
    Raises UserError for storage that may not be used, a damaged bundle or data set, one of another size or number of
    levels than the model's, no room on the cluster, and where `out` holds the evaluation of something else, or another
    job works there.
    """
    storage.check(out, write=True)
    bundle = read_bundle(bundle_uri)
    bundle.require_shape(data.uri, data.shape)
    data.require_whole(split)
    write_settings(out, {"model": bundle.digest, "data_fingerprint": data.fingerprint, "split": split})
    written = storage.join(out, "evaluation.json")
    if not storage.exists(written):
        with lock(out) as held:
            if not storage.exists(written):  # another job may have finished while this one waited
                actors = cluster.actors(gpus, wait_minutes, "--gpus-per-worker")
                evaluation = evaluate(partial(read_vqvae, bundle.uri, bundle.digest), data, split, actors)
                return write_evaluation(out, bundle.digest, evaluation, held.commit)
    return documents.read(written, ReconstructionScores)


def write_evaluation(out: str, model: str, evaluation: Evaluation, commit: Commit) -> ReconstructionScores:
    """Write `<out>/slices.parquet` and then, by `commit`, `<out>/evaluation.json`, which names the model; returns its
    scores.
    """
    written = {"model": model, **asdict(evaluation.scores)}
    tables.write(storage.join(out, "slices.parquet"), evaluation.slices, len(evaluation.slices))
    commit(storage.join(out, "evaluation.json"), (json.dumps(written, indent=2) + "\n").encode())
    return evaluation.scores
