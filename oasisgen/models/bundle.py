"""The trained model as files: safetensors, JSON and a model card. Nothing in it is unpickled."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from oasisgen import __version__, documents, storage
from oasisgen.config import renamed
from oasisgen.config.data import OASIS, Shape
from oasisgen.config.folder import ADDED
from oasisgen.config.train import DCGANConfig, FeaturesConfig, LabelsConfig, MaskedConfig, PriorName, VQVAEConfig
from oasisgen.data.description import LabelClass
from oasisgen.documents import Name
from oasisgen.errors import InvalidFile, UserError
from oasisgen.lock import Commit
from oasisgen.models.features import FeatureNetwork
from oasisgen.models.labels import LabelDecoder
from oasisgen.models.priors import PRIORS, Prior, make_prior
from oasisgen.models.scores import BundleMetrics
from oasisgen.models.vqvae import VQVAE

FORMAT = 3  # 1 had no feature network; 2 used other names (OLD_TENSORS, config/renamed.py)
OLD_TENSORS = (  # prefix of a prior's tensors in format 2 -> prefix now
    ("palette.colours", "embedding.weight"),
    ("template.", "pca_prior."),
    ("shapes", "cholesky"),
    ("guesser.", "predictor."),
)

ENDING = ".safetensors"


@dataclass(frozen=True)
class TrainedOn:
    """The data set that a model was trained on. Fields with a default are missing in older bundles."""

    uri: str
    fingerprint: str
    image_size: tuple[int, int] = OASIS.image_size
    levels: int = OASIS.levels
    trained_levels: tuple[int, ...] | None = None  # of the training split; None if the data set does not list them

    @property
    def shape(self) -> Shape:
        """The size of its slices, and its number of levels. Raises ValueError if no model can have it."""
        return Shape(*self.image_size, self.levels)


@dataclass(frozen=True, kw_only=True)
class BundleSettings:
    """How a model was trained: what is written to `config.json` of its bundle, besides versions and digests."""

    seed: int
    data: TrainedOn
    vqvae: VQVAEConfig
    prior: PriorName
    prior_settings: DCGANConfig | MaskedConfig
    features: FeaturesConfig
    labels: LabelsConfig | None = None  # None without a label decoder
    label_classes: tuple[LabelClass, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the file has it, where the settings of the prior stand under its name."""
        fields = asdict(self)
        fields = {self.prior if name == "prior_settings" else name: value for name, value in fields.items()}
        if not self.labels:
            del fields["labels"], fields["label_classes"]
        return fields


@dataclass(frozen=True)
class BundleFile:
    """`config.json` of a bundle, as it is read: of any version. See also `BundleSettings`."""

    data: TrainedOn
    files: dict[Name, str]  # -> sha256
    vqvae: dict[str, Any]
    prior: PriorName = "dcgan"  # older bundles do not name it: there was only one
    labels: dict[str, Any] | None = None  # of a bundle with a label decoder, as is `label_classes`
    label_classes: tuple[LabelClass, ...] = ()  # the pixels of label maps are places in this tuple


@dataclass(frozen=True)
class Bundle:
    """A model read from storage. `digest` identifies its weights and configuration."""

    uri: str
    digest: str
    described: BundleFile
    vqvae: VQVAE
    prior: Prior
    features: FeatureNetwork
    labels: LabelDecoder | None  # None: it was trained on slices without label maps

    @property
    def shape(self) -> Shape:
        """The size of its slices, and its number of levels."""
        return self.described.data.shape

    @property
    def label_subjects(self) -> int:
        """Of how many subjects its label decoder has seen label maps; 0: of all in its data set."""
        return int((self.described.labels or {}).get("subjects", 0))

    @property
    def trained_levels(self) -> list[int]:
        """The levels it was trained on; all levels if the bundle does not list them."""
        return list(self.described.data.trained_levels or range(self.shape.levels))

    def require_shape(self, data: str, shape: Shape) -> None:
        """Raise UserError if `shape`, that of the data set at `data`, is not the model's."""
        if shape != self.shape:
            raise UserError(
                f"model {self.uri} has {self.shape}, data set {data} has {shape}: name a data set with the same size "
                "and number of levels"
            )


def weights_of(network: nn.Module) -> bytes:
    """The weights of a network as a safetensors file."""
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    )


def write_bundle(
    uri: str,
    settings: BundleSettings,
    vqvae: VQVAE,
    prior: Prior,
    features: bytes,
    metrics: BundleMetrics,
    commit: Commit,
    labels: LabelDecoder | None = None,
) -> str:
    """Write a bundle; returns the model digest.

    `features` are the weights of the feature network, copied as they are. `commit` writes `config.json`, which holds
    the digests of the weights, after all other files.
    """
    weights = {
        f"vqvae{ENDING}": weights_of(vqvae),
        f"{settings.prior}{ENDING}": weights_of(prior),
        f"features{ENDING}": features,
        **({f"labels{ENDING}": weights_of(labels)} if labels else {}),
    }
    for name, data in weights.items():
        storage.write_bytes(storage.join(uri, name), data)
    files = {name: hashlib.sha256(data).hexdigest() for name, data in weights.items()}
    described = {"format": FORMAT, "version": __version__, **settings.to_json(), "files": files}
    text = json.dumps(described, indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    storage.write_text(storage.join(uri, "metrics.json"), json.dumps(metrics.to_json(), indent=2) + "\n")
    storage.write_text(storage.join(uri, "README.md"), _model_card(settings, digest, metrics))
    commit(storage.join(uri, "config.json"), text.encode())
    return digest


def find_bundle(uri: str) -> str:
    """The URI of a bundle, given that URI or the one of its run. Raises UserError if there is no bundle."""
    for place in (uri, storage.join(uri, "model")):
        # A run also has a config.json, so look for weights.
        if any(storage.exists(storage.join(place, name + ENDING)) for name in ("vqvae", *PRIORS)):
            return storage.absolute(place)
    storage.check(uri, write=False)  # if the bucket is missing, say so
    raise UserError(f"no model bundle at {uri}: give --model a run that jobs/train.py finished, or its model folder")


def read_bundle(uri: str, expected: str = "") -> Bundle:
    """Read a bundle, or that of a run, and check every file against its digest.

    Raises UserError if a file is missing or damaged, if the format is unknown, and if the bundle's digest is not the
    `expected` one: actors read the bundle again, perhaps hours after the job did.
    """
    uri = find_bundle(uri)
    file = storage.join(uri, "config.json")
    try:
        text = storage.read_bytes(file)
        config = documents.parse(text, dict, file)
    except (FileNotFoundError, InvalidFile):
        raise UserError(f"bundle {uri}: config.json is missing or damaged: run the training command again") from None
    if config.get("format") not in (2, FORMAT):
        raise UserError(f"bundle {uri} has format {config.get('format')}, this version reads 2 and 3: train it again")
    described = documents.parse(text, BundleFile, file)
    digest = hashlib.sha256(text).hexdigest()
    if expected and digest != expected:
        change = f"{expected[:12]} by {digest[:12]}"
        raise UserError(f"bundle {uri} was replaced, {change}: put the old one back, or use another --out")
    weights = {}
    for name, sha256 in described.files.items():
        try:
            data = storage.read_bytes(storage.join(uri, name))
        except FileNotFoundError:
            raise UserError(f"bundle {uri}: {name} is missing: copy the whole folder, or train again") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"bundle {uri}: {name} is truncated or changed: copy it again, or train again") from None
        weights[name.removesuffix(ENDING)] = data
    try:
        networks = _networks(described, config, {name: safetensors.torch.load(data) for name, data in weights.items()})
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidFile(f"bundle {uri}: its weights do not fit its config.json ({reason}): train it again") from None
    return Bundle(uri, digest, described, *networks)


def _new_name(tensor: str) -> str:
    for old, new in OLD_TENSORS:
        if tensor.startswith(old):
            return new + tensor.removeprefix(old)
    return tensor


def _networks(
    described: BundleFile, config: dict[str, Any], tensors: dict[str, Any]
) -> tuple[VQVAE, Prior, FeatureNetwork, LabelDecoder | None]:
    """VQ-VAE, prior, feature network and label decoder, if there is one, with their weights, in evaluation mode.

    `config` is what `described` was read from: it has the settings of the prior.
    """
    kind, shape = described.prior, described.data.shape
    if config["format"] == 2:
        config = renamed.upgrade(config)
        tensors[kind] = {_new_name(name): tensor for name, tensor in tensors[kind].items()}
    vqvae = VQVAE(VQVAEConfig(**config["vqvae"]))
    vqvae.load_state_dict(tensors["vqvae"])
    older = {name.removeprefix(f"{kind}."): value for name, value in ADDED.items() if name.startswith(f"{kind}.")}
    prior = make_prior(kind, older | config[kind], vqvae.quantizer.codebook.detach(), shape)
    prior.load_state_dict(tensors[kind])
    features = FeatureNetwork(shape)
    features.load_state_dict(tensors["features"])
    labels = None
    if described.labels:
        code_dim, classes = vqvae.quantizer.codebook.shape[1], len(described.label_classes)
        labels = LabelDecoder(LabelsConfig(**described.labels), code_dim, classes)
        labels.load_state_dict(tensors["labels"])
    for network in (vqvae, prior, features, labels):
        if network:
            network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return vqvae, prior, features, labels


def is_whole(uri: str) -> bool:
    """Whether there is a complete and undamaged bundle at `uri`."""
    try:
        read_bundle(uri)
    except UserError:
        return False
    return True


def read_vqvae(uri: str, expected: str = "") -> VQVAE:
    """The VQ-VAE of a bundle, in evaluation mode. Arguments and errors are those of `read_bundle`."""
    return read_bundle(uri, expected).vqvae


def read_features(uri: str, expected: str = "") -> FeatureNetwork:
    """The feature network of a bundle, in evaluation mode. Arguments and errors are those of `read_bundle`."""
    return read_bundle(uri, expected).features


def _model_card(settings: BundleSettings, digest: str, metrics: BundleMetrics) -> str:
    scores, shape = metrics.reconstruction, settings.data.shape
    ssim = scores.ssim
    labels = "" if metrics.label_dice is None else _about_labels(metrics.label_dice)
    if settings.labels and settings.labels.subjects:
        labels += f"; learned from label maps of {settings.labels.subjects} subjects alone"
    return f"""# oasisgen model {digest[:12]}

A VQ-VAE and a prior over its code maps (a {PRIORS[settings.prior].label}) that generate axial
T1-weighted brain MRI slices ({shape.height} x {shape.width} pixels, 8 bit, {shape.levels} levels).

- Trained on: `{settings.data.uri}` (fingerprint `{settings.data.fingerprint[:12]}`)
- Written by: oasisgen {__version__}
- Reconstruction SSIM on the validate split: {ssim.mean:.4f} (95 % interval {ssim.low:.4f} to {ssim.high:.4f})
- Codes in use: {scores.codes_in_use} of {settings.vqvae.codebook_size}{labels}
- Research use only, not for diagnosis. Synthetic slices can resemble training slices: read the batch's report.

`config.json` holds the architecture and the digests of the weights; the weights are safetensors.
"""


def _about_labels(dice: dict[str, float]) -> str:
    scores = ", ".join(f"{name} {score:.3f}" for name, score in dice.items())
    return f"\n- Label maps of its slices; Dice on the validate split: {scores}"
