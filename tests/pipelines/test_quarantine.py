"""Which batches are released: those of a good model, not those of models bad in each of the known ways.

The real slices are those that a model paints: so it is as good as can be, and worse ones are made of it by hand.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from oasisgen import storage
from oasisgen.cluster import Actors
from oasisgen.config.data import OASIS
from oasisgen.config.generate import GateConfig, GenerateConfig
from oasisgen.config.pack import PackConfig
from oasisgen.config.presets import DEMO
from oasisgen.config.train import DCGANConfig, VQVAEConfig
from oasisgen.data.pack import pack
from oasisgen.data.phantom import subject
from oasisgen.data.pixels import to_unit
from oasisgen.data.slices import DataSet, file_name, open_data_set
from oasisgen.lock import acquire
from oasisgen.models.bundle import Bundle, BundleSettings, TrainedOn, read_bundle, weights_of, write_bundle
from oasisgen.models.codes import make_embedding
from oasisgen.models.dcgan import DCGAN
from oasisgen.models.vqvae import VQVAE
from oasisgen.pipelines.generate import generate
from oasisgen.pipelines.slices import BatchJob, make_slices
from oasisgen.quality.reference import read_reference_data
from oasisgen.sampling.ids import groups, ids_of_levels
from oasisgen.sampling.parts import part_uri
from oasisgen.sampling.sample import Sampler
from tests.conftest import METRICS, digests, png, requested, start_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("hardly_told_apart")]

LEVELS = [8, 16, 24]
COUNT = 96
CONFIG = VQVAEConfig(channels=16, residual_channels=16, residual_blocks=1, weight_ema_decay=0.0)
GATE = GateConfig(copies=0.1)  # the shares of these few slices, 96 beside 60, are that uncertain
PRIOR = DCGANConfig(channels=8, components=16)
CASES = {"train": (100, 40), "validate": (200, 20)}  # split: base seed, cases; a case is a turn of 32 ids


def train_a_little(images: torch.Tensor) -> VQVAE:
    """A VQ-VAE that has seen slices (N, 1, 256, 256) uint8 for a moment."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = VQVAE(CONFIG)
    model.quantizer.eval()  # the codes stay as they were drawn
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(90):
        rows = torch.randint(len(images), (8,), generator=random)
        y, x = torch.randint(32, 97, (2,), generator=random).tolist()
        crop = to_unit(images[rows, :, y : y + 128, x : x + 128])
        out = model(crop)
        optimizer.zero_grad()
        (F.mse_loss(out.image, crop) + out.quantizer_loss).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def good(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose prior is the linear model of the heads alone."""
    images = torch.from_numpy(np.concatenate([subject(0, number)[LEVELS] for number in range(12)])).unsqueeze(1)
    levels = torch.tensor(LEVELS * 12)
    vqvae = train_a_little(images)
    codes = torch.cat([vqvae.encode(to_unit(some)) for some in images.split(8)])
    codebook = vqvae.quantizer.codebook.detach()
    usage = torch.bincount(codes.flatten(), minlength=len(codebook))
    prior = DCGAN(PRIOR, make_embedding(PRIOR, codebook, usage), OASIS)
    assert prior.pca_prior
    prior.pca_prior.fit(lambda: [(codes, levels)], prior.embedding)
    for parameter in prior.generator.ladder[-1].parameters():
        torch.nn.init.zeros_(parameter)
    out = tmp_path_factory.mktemp("good") / "model"
    return write(out, vqvae, prior, read_bundle(str(trained)), TrainedOn("", ""))


def write(out: Path, vqvae: VQVAE, prior: DCGAN, like: Bundle, data: TrainedOn) -> Path:
    """A bundle of parts."""
    features = DEMO.features
    settings = BundleSettings(seed=0, data=data, vqvae=CONFIG, prior="dcgan", prior_settings=PRIOR, features=features)
    write_bundle(str(out), settings, vqvae, prior, weights_of(like.features), METRICS, storage.write_bytes)
    return out


@pytest.fixture(scope="module")
def painted(good: Path, connected: str, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """A data set of what the good model paints."""
    raw, packed = tmp_path_factory.mktemp("painted"), tmp_path_factory.mktemp("packed")
    for split, (seed, cases) in CASES.items():
        (raw / split).mkdir()
        sampler = Sampler(str(good), seed)
        for group in groups(ids_of_levels(LEVELS, 32, 0, cases * len(LEVELS))):
            made = sampler.sample(group)
            for number, level, image in zip(made["id"], made["level"], made["image"], strict=True):
                (raw / split / file_name(str(seed + number // 32), int(level))).write_bytes(png(image))
        last = OASIS.levels - 1  # the model knows as many levels
        (raw / split / file_name(str(seed), last)).write_bytes(png(subject(seed, 0)[last]))
    pack(PackConfig(str(raw), str(packed)))
    return open_data_set(str(packed))


@pytest.fixture(scope="module")
def parts(good: Path) -> Bundle:
    return read_bundle(str(good))


def judged(model: Path, painted: DataSet, out: Path, **changed: object) -> tuple[str, str]:
    """Verdict and reasons of a batch."""
    config = GenerateConfig(
        str(model), str(out), count=COUNT, levels="8,16,24", base_seed=1, data=painted.uri, gate=GATE
    )
    summary = generate(replace(config, **changed))  # type: ignore[arg-type]
    assert summary
    return summary.verdict, "; ".join(summary.reasons)


def test_two_nights_of_a_good_model_are_released(good: Path, painted: DataSet, tmp_path: Path) -> None:
    """The second one is killed on the way, and started again by the same command."""
    nights = [tmp_path / "batches" / name for name in ("2026-11-23", "2026-11-24")]
    config = GenerateConfig(
        str(good), str(nights[0]), count=COUNT, levels="8,16,24", data=painted.uri, part_size=32, gate=GATE
    )
    first_night = generate(config)
    assert first_night
    assert first_night.reasons == ()
    flags = ["--model", str(good), "--data", painted.uri, "--count", str(COUNT), "--levels", "8,16,24"]
    flags += ["--gate.copies", str(GATE.copies), "--part-size", "32", "--out"]
    job = start_job("generate", *flags, str(nights[1]))
    while not list(nights[1].glob("summary/*")):
        assert job.poll() is None
        time.sleep(0.1)
    job.kill()
    job.communicate()
    second_night = generate(replace(config, out=str(nights[1])))
    assert second_night
    assert second_night.reasons == ()
    assert second_night.compared_with == "2026-11-23"
    first, second = (set(digests(night, "*.png").values()) for night in nights)
    assert len(first | second) == 2 * COUNT  # their names are their seeds
    page = (tmp_path / "batches" / "index.html").read_text()
    assert page.index("2026-11-24/report/index.html") < page.index("2026-11-23/report/index.html")
    assert page.count('<td class="released">') == 2


def test_a_collapsed_model_is_not(parts: Bundle, painted: DataSet, tmp_path: Path) -> None:
    prior = make(parts)
    assert prior.pca_prior
    prior.pca_prior.components.zero_()
    model = write(tmp_path / "model", parts.vqvae, prior, parts, TrainedOn("", ""))
    verdict, reasons = judged(model, painted, tmp_path / "b")
    assert verdict == "quarantined"
    assert "too little variety: ms_ssim is 1.000" in reasons
    assert "too many real slices lie where no synthetic ones do" in reasons
    assert "copies" not in reasons


def test_a_blurred_model_is_not(parts: Bundle, painted: DataSet, tmp_path: Path) -> None:
    """Its codes are smeared before they are decoded."""
    prior = make(parts)
    assert prior.pca_prior
    for maps in (prior.pca_prior.mean, prior.pca_prior.components):
        maps.copy_(F.avg_pool2d(maps, 9, stride=1, padding=4, count_include_pad=False))
    model = write(tmp_path / "model", parts.vqvae, prior, parts, TrainedOn("", ""))
    verdict, reasons = judged(model, painted, tmp_path / "b")
    assert verdict == "quarantined"
    assert "unlike real slices: fid is" in reasons
    assert "too many slices lie where no real ones do" in reasons


def test_a_model_that_replays_training_slices_is_not(good: Path, painted: DataSet, tmp_path: Path) -> None:
    """Its noise is that of the training cases."""
    verdict, reasons = judged(good, painted, tmp_path / "b", base_seed=CASES["train"][0])
    assert verdict == "quarantined"
    assert "too many suspected copies of training slices: suspected_copies is 1.000" in reasons


def test_refused_slices_are_replaced_by_the_next_ids(good: Path, painted: DataSet, tmp_path: Path) -> None:
    bundle, out = read_bundle(str(good)), str(tmp_path / "b")
    request = requested(base_seed=1, levels=tuple(LEVELS), part_size=16, reject="copies")
    job = BatchJob(out, request, bundle, Actors())
    real = read_reference_data(painted, request)
    least = {"copy_ratio": float(np.median(real.scores["copy_ratio"].to_numpy()))}  # refuses about a half
    held = acquire(out)
    entries, made = make_slices(job, real, least, held)
    kept, rejected = (pq.read_table(f"{out}/{name}") for name in ("summary", "rejected"))
    assert 5 < len(rejected) <= 40
    assert len(kept) == sum(entry.slices for entry in entries) == min(40, 80 - len(rejected))
    assert min(kept["copy_ratio"].to_numpy()) >= least["copy_ratio"] > max(rejected["copy_ratio"].to_numpy())
    assert made == len(kept) + len(rejected)
    ids = [*kept["id"].to_pylist(), *rejected["id"].to_pylist()]
    assert sorted(ids) == ids_of_levels(LEVELS, 32, 0, len(ids)).tolist()
    assert len(list(Path(out).rglob("*.png"))) == len(kept)
    assert make_slices(job, real, least, held) == (entries, 0)  # nothing is made twice
    for number in (0, 1):
        Path(part_uri(out, number)).unlink()
    assert make_slices(job, real, least, held) == (entries, 32)  # only what is missing is made, and counted


def make(parts: Bundle) -> DCGAN:
    """The good prior again, to be spoiled."""
    prior = DCGAN(
        PRIOR, make_embedding(PRIOR, parts.vqvae.quantizer.codebook.detach(), torch.ones(CONFIG.codebook_size)), OASIS
    )
    prior.load_state_dict(parts.prior.state_dict())
    return prior.requires_grad_(False)
