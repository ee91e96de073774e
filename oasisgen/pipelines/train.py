"""The training job: VQ-VAE, feature network, code maps, prior, bundle, report. Finished stages are not repeated."""

import dataclasses
import pkgutil
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from oasisgen import cluster, storage
from oasisgen.config.folder import require_same_settings, write_settings
from oasisgen.config.train import TrainConfig
from oasisgen.data.feed import Feed, evenly_spaced
from oasisgen.data.pixels import to_uint8, to_unit
from oasisgen.data.slices import DataSet, open_data_set, source_of
from oasisgen.errors import UserError
from oasisgen.lock import Lock, lock, require_unlocked, unless_locked
from oasisgen.models.bundle import BundleSettings, TrainedOn, is_whole, write_bundle
from oasisgen.models.priors import PRIORS, make_prior
from oasisgen.models.scores import BundleMetrics
from oasisgen.models.vqvae import VQVAE
from oasisgen.pipelines import feeds
from oasisgen.pipelines.labels import few_label_maps, train_label_decoder
from oasisgen.pipelines.plan import plan_run, stages_of
from oasisgen.progress import say
from oasisgen.quality.reconstruction import evaluate
from oasisgen.reports.run import GENERATED, SHOWN, Histories, write_run_report
from oasisgen.sampling.ids import groups, ids_of_levels, level_of
from oasisgen.sampling.sample import Sampler
from oasisgen.training import checkpoint, encode, history
from oasisgen.training.encode import encode_splits, require_same_codes
from oasisgen.training.launch import Stage, complete
from oasisgen.training.shared_features import features_of, find
from oasisgen.training.vqvae import train_vqvae


def train(config: TrainConfig) -> str | None:
    """Run the whole job; returns the bundle's URI, None for a dry run. Needs a connected Ray.

    A finished run returns at once, an interrupted one continues. Raises UserError, before anything long has started,
    for storage that may not be used, an unusable data set, too few free CPUs or GPUs, a run of that name with another
    configuration or still going on; and, later, for a loss that stays non-finite.
    """
    config = dataclasses.replace(config, data=storage.absolute(config.data), out=storage.absolute(config.out))
    storage.check(config.out, write=True)
    data = open_data_set(config.data)
    check_size(config, data)
    if config.feed == "auto" and (kept := feeds.begun_with(config.out)):
        config = dataclasses.replace(config, feed=kept)
    require_same_settings(config.out, settings_of(config, data))
    bundle_uri = storage.join(config.out, "model")
    finished = is_finished(config.out)
    if not finished:
        with unless_locked(config.out):
            minutes = 0 if config.dry_run else config.wait_minutes
            cluster.require_workers(
                config.min_workers or config.workers, config.cpus_per_worker, config.gpus_per_worker, minutes
            )
            cluster.require_actors(dataclasses.replace(actors_of(config), wait_minutes=minutes))
        if config.feed == "auto":  # now that all nodes are there
            config = dataclasses.replace(config, feed=feeds.choose(config, data))
        feeds.require_room(config, data)
        find(data, config.features)  # a damaged one is reported now, not after stage 1
        few_label_maps(config, data)  # so are too few subjects
    if config.dry_run:
        require_unlocked(config.out)
        begun = storage.exists(storage.join(config.out, "config.json"))
        state = "is finished" if finished else "was begun and would go on" if begun else "would be a new one"
        for line in plan_run(config, data, cluster.free(), state):
            say("plan", line)
        return None
    write_settings(config.out, settings_of(config, data))
    if not finished:
        with lock(config.out) as held:
            if not is_finished(config.out):  # another job may have finished the run while this one waited
                train_stages(config, data, bundle_uri, held)
    return bundle_uri


def is_finished(out: str) -> bool:
    """Whether the run at `out` has its model bundle and, written last, its report."""
    return storage.exists(storage.join(out, "report", "index.html")) and is_whole(storage.join(out, "model"))


def train_stages(config: TrainConfig, data: DataSet, bundle_uri: str, held: Lock) -> None:
    """VQ-VAE, feature network, codes, label decoder, prior, bundle, report; a stage that is done returns at once."""
    say("train", f"run {config.out}")
    say("read", f"{data.count('train')} slices to train on, {data.count('validate')} to validate on")
    train_slices, held_out = (source_of(config.feed, data, split) for split in ("train", "validate"))
    inputs = {"train": train_slices, "validate": held_out}
    stage = Stage("vqvae", train_vqvae, inputs, best="ssim")
    histories: Histories = {"vqvae": history.of(complete(stage, config, held.proof))}
    best = checkpoint.best(storage.join(config.out, "vqvae"), "ssim")
    load_vqvae = partial(checkpoint.restore_vqvae, best, config.vqvae)
    vqvae = load_vqvae()

    features = features_of(data, config, train_slices, held.proof)
    histories["features"] = features.history
    del train_slices, inputs, stage  # stage 2 reads codes only
    codes_uri = storage.join(config.out, "codes")
    also_held_out = data.label_classes or PRIORS[config.prior].held_out
    encoded = ("train", "validate") if also_held_out else ("train",)
    digest = encode_splits(data, encoded, load_vqvae, codes_uri, actors_of(config), held.write)
    require_same_codes(storage.join(config.out, config.prior), digest, held.write)

    codebook = vqvae.quantizer.codebook.detach()
    labels = train_label_decoder(config, data, load_vqvae, held_out, digest, held)
    decoder, learned = (labels.decoder, labels.results) if labels else (None, None)
    codes_of = partial(encode.source_of, config.feed, codes_uri, code_size=data.shape.code_size)
    of_prior: dict[str, Any] = {"codes": codes_of("train"), "codebook": codebook, "shape": data.shape}
    if PRIORS[config.prior].held_out:
        of_prior["held_out"] = codes_of("validate")
    stage = Stage(config.prior, pkgutil.resolve_name(PRIORS[config.prior].loop), of_prior)
    state = complete(stage, config, held.proof)
    histories[config.prior] = history.of(state)
    prior_settings = getattr(config, config.prior)
    prior = make_prior(config.prior, dataclasses.asdict(prior_settings), codebook, data.shape)
    prior.load_state_dict(state["averaged"])

    settings = BundleSettings(
        seed=config.seed,
        data=trained_on(data),
        vqvae=config.vqvae,
        prior=config.prior,
        prior_settings=prior_settings,
        features=config.features,
        labels=config.labels if labels else None,
        label_classes=data.label_classes,
    )
    evaluation = evaluate(load_vqvae, data, "validate", actors_of(config))
    code_counts = tuple(evaluation.code_counts.tolist())
    metrics = BundleMetrics(evaluation.scores, code_counts, learned.dice if learned else None)
    held.renew()
    with suppress(FileNotFoundError):
        storage.remove(storage.join(config.out, "report", "index.html"))  # of a bundle before: the run is not finished
    model = write_bundle(bundle_uri, settings, vqvae, prior, features.weights, metrics, held.write, decoder)

    feed = held_out.load()
    pairs = reconstructions(vqvae, feed)
    generated = samples(bundle_uri, model, config, data, feed)
    write_run_report(config.out, settings, model, evaluation, histories, pairs, generated, held.commit, learned)


def settings_of(config: TrainConfig, data: DataSet) -> dict[str, Any]:
    """The settings that a run's folder keeps."""
    settings = dataclasses.asdict(config) | {"data_fingerprint": data.fingerprint}
    if not data.label_classes:
        del settings["labels"]  # they change nothing; runs of older versions have none
    return settings


def actors_of(config: TrainConfig) -> cluster.Actors:
    """The actors that encode and evaluate: on a GPU, or a share of one, if the workers train on GPUs; else on CPUs."""
    return cluster.Actors(min(1.0, config.gpus_per_worker), config.wait_minutes)


def trained_on(data: DataSet) -> TrainedOn:
    """The description in a bundle of the data set that it was trained on."""
    return TrainedOn(data.uri, data.fingerprint, data.image_size, data.levels, data.split("train").levels)


def check_size(config: TrainConfig, data: DataSet) -> None:
    """Raise UserError where a split is missing or damaged, an epoch would have no step, or slices are too small."""
    half = min(data.shape.code_size) // 2
    if config.prior == "dcgan" and config.dcgan.shift >= half:
        raise UserError(
            f"dcgan.shift is {config.dcgan.shift}: must be below {half}, half the shorter side of the code maps of "
            f"{data.uri}"
        )
    for split in ("train", "validate"):
        data.require_whole(split)
    for stage in stages_of(config, data):
        batch, rows = getattr(config, stage).batch_size, data.count("train")
        if batch % config.workers:
            raise UserError(f"{stage}.batch_size is {batch}: must be a multiple of workers ({config.workers})")
        if batch > rows:
            raise UserError(f"{stage}.batch_size is {batch}: must be at most {rows}, the slices in {data.uri}/train")


@torch.no_grad()
def reconstructions(vqvae: VQVAE, held_out: Feed) -> list[tuple[np.ndarray, np.ndarray]]:
    """Eight held-out slices, spread over cases and levels, each with its reconstruction."""
    images = torch.from_numpy(held_out.rows(evenly_spaced(len(held_out), SHOWN), "image"))  # (8, H, W)
    written = to_uint8(vqvae.decode(vqvae.encode(to_unit(images.unsqueeze(1))))).squeeze(1)  # (8, H, W)
    return list(zip(images.numpy(), written.numpy(), strict=True))


def samples(
    bundle_uri: str, digest: str, config: TrainConfig, data: DataSet, held_out: Feed
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first sample ids of the levels trained on, or of some evenly spaced ones, each with a held-out slice of its
    level: GENERATED in all.
    """
    sampler = Sampler(bundle_uri, config.seed, expected=digest)
    levels = held_out.column("level")
    trained = data.split("train").levels or range(data.levels)
    some = [trained[place] for place in evenly_spaced(len(trained), GENERATED)]
    chosen: list[tuple[np.ndarray, np.ndarray]] = []
    for group in groups(ids_of_levels(some, data.levels, 0, GENERATED)):
        made: dict[str, Any] = sampler.sample(group)
        for number, image in zip(made["id"], made["image"], strict=True):
            same = np.flatnonzero(levels == level_of(number, data.levels))
            row = same[number % len(same)] if len(same) else number % len(levels)
            chosen.append((image, held_out.rows(np.array([row]), "image")[0]))
    return chosen
