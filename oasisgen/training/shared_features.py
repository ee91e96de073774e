"""The feature network of a data set: trained by the first run that needs it, and used by every other one.

In `<data set>/features/`, `<name>.json` describes a network and holds the digest of its weights. The name stands for
the packed slices, the settings and the recipe, so a data set that was packed again never uses the old network.

No lock is needed, because nothing here is ever replaced. The weights' file is named after their digest, and the JSON is
created by one conditional write. If two runs train the network at the same time, one of them publishes it, and both use
that one.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import safetensors
import safetensors.torch

from oasisgen import __version__, documents, storage
from oasisgen.config.train import FeaturesConfig, TrainConfig
from oasisgen.data.feed import Source
from oasisgen.data.slices import FEATURES, DataSet
from oasisgen.documents import Count, Finite, Name
from oasisgen.errors import InvalidFile, StorageError, UserError
from oasisgen.lock import LockProof
from oasisgen.models.bundle import ENDING, weights_of
from oasisgen.models.features import FeatureNetwork
from oasisgen.progress import say
from oasisgen.training import history
from oasisgen.training.features import PretextHeads, train_features
from oasisgen.training.launch import Stage, complete

RECIPE = 1  # increase it when the network or its training changes: stored networks of other recipes are not used
SEED = 0  # not the run's seed, on which the measures of its slices would then depend


@dataclass(frozen=True)
class PretextEpoch:
    """An epoch of training; see `training.features.LOSSES`."""

    epoch: Count
    level_loss: Finite
    damage_loss: Finite
    anatomy_loss: Finite

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class FeaturesFile:
    """`<name>.json`: a network that is kept with its data set."""

    fingerprint: str  # of the data set
    features: dict[str, Any]  # the settings
    recipe: int
    seed: Count
    version: str  # of the program that trained it
    file: Name  # the weights, beside this file
    sha256: str  # of the weights
    history: tuple[PretextEpoch, ...]


@dataclass(frozen=True)
class TrainedFeatures:
    """A trained feature network: its weights as a safetensors file, and how its training went."""

    weights: bytes
    history: tuple[PretextEpoch, ...]

    @property
    def digest(self) -> str:
        """The digest by which bundles and batches name the network."""
        return hashlib.sha256(self.weights).hexdigest()


def features_of(data: DataSet, config: TrainConfig, train: Source, lock: LockProof | None) -> TrainedFeatures:
    """The feature network of a data set, which is trained and published first if there is none.

    Its checkpoints are those of the stage `features` of this run. If the data set's folder cannot be written to, the
    run keeps its own network. Raises as `complete` and `find`.
    """
    if kept := find(data, config.features):
        say("features", f"network {kept.digest[:12]} was trained before, for all runs of this data set")
        return kept
    stage = Stage("features", train_features, {"train": train, "shape": data.shape})
    state = complete(stage, replace(config, seed=SEED), lock)
    heads = PretextHeads(data.shape)
    heads.load_state_dict(state["model"])
    epochs = tuple(PretextEpoch(epoch.epoch, **epoch.metrics) for epoch in history.of(state))
    trained = TrainedFeatures(weights_of(heads.network), epochs)
    try:
        return publish(data, config.features, trained)
    except StorageError as error:
        say("features", f"this run alone uses network {trained.digest[:12]}, which cannot be kept: {error}")
        return trained


def find(data: DataSet, config: FeaturesConfig) -> TrainedFeatures | None:
    """The published network of these slices and settings, if there is one. Raises InvalidFile if it is damaged."""
    described = _place(data, config)
    try:
        record = documents.read(described, FeaturesFile)
    except FileNotFoundError:
        return None
    uri = storage.join(data.uri, FEATURES, record.file)
    try:
        weights = storage.read_bytes(uri)
        fault = "" if hashlib.sha256(weights).hexdigest() == record.sha256 else "is truncated or changed"
        if not fault:
            FeatureNetwork(data.shape).load_state_dict(safetensors.torch.load(weights))
    except FileNotFoundError:
        fault = "is missing"
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError):
        fault = "has other tensors than this version's network"
    if fault:
        raise InvalidFile(f"feature network {uri} {fault}: remove {described} to have it trained again")
    return TrainedFeatures(weights, record.history)


def publish(data: DataSet, config: FeaturesConfig, trained: TrainedFeatures) -> TrainedFeatures:
    """Keep a network with its data set, and return it; or the one that another run has published meanwhile.

    Raises StorageError if the data set's folder cannot be written to, and as `find`.
    """
    described = _place(data, config)
    file = f"{_name(data, config)}-{trained.digest[:12]}{ENDING}"
    uri = storage.join(data.uri, FEATURES, file)
    storage.write_bytes(uri, trained.weights)
    record = FeaturesFile(
        **_identity(data, config),
        version=__version__,
        file=file,
        sha256=trained.digest,
        history=trained.history,
    )
    if storage.create(described, (json.dumps(asdict(record), indent=2) + "\n").encode()):
        say("features", f"network {trained.digest[:12]} is kept for all runs of this data set: {described}")
        return trained
    theirs = find(data, config)
    if not theirs or theirs.digest == trained.digest:
        return trained
    say("features", f"another run published network {theirs.digest[:12]} meanwhile: it is used, and ours is dropped")
    with suppress(FileNotFoundError, StorageError):
        storage.remove(uri)
    return theirs


def planned(data: DataSet, config: FeaturesConfig) -> str:
    """For a dry run: where the network would come from, or go to. Raises as `find`."""
    if kept := find(data, config):
        return f"feature network: {kept.digest[:12]}, trained before; that stage is left out"
    folder = storage.join(data.uri, FEATURES)
    try:
        storage.check(folder, write=True)
    except UserError as error:
        return f"feature network: would be this run's alone, because it cannot be kept: {error}"
    return f"feature network: would be kept in {folder} for all runs of this data set"


def _identity(data: DataSet, config: FeaturesConfig) -> dict[str, Any]:
    """Everything that decides what a network has learned, but for the kind of machine, and the feed of its slices."""
    return {"fingerprint": data.fingerprint, "features": asdict(config), "recipe": RECIPE, "seed": SEED}


def _name(data: DataSet, config: FeaturesConfig) -> str:
    return hashlib.sha256(json.dumps(_identity(data, config), sort_keys=True).encode()).hexdigest()[:12]


def _place(data: DataSet, config: FeaturesConfig) -> str:
    return storage.join(data.uri, FEATURES, f"{_name(data, config)}.json")
