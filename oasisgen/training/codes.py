"""Slices -> code maps, once, with Ray Data."""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy

from oasisgen import cluster, storage
from oasisgen.config import CODE_SIZE, VQVAEConfig
from oasisgen.data.slices import DataSet, read_slices, to_unit
from oasisgen.models.vqvae import VQVAE
from oasisgen.progress import Progress

MAPS_PER_PART = 4096
ENCODE_BATCH = 16


class Encoder:
    """A Ray actor that encodes batches of slices."""

    def __init__(self, config: VQVAEConfig, weights: dict[str, torch.Tensor]) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = VQVAE(config).to(self.device).eval()
        self.model.load_state_dict(weights)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        x = to_unit(torch.from_numpy(np.array(batch["image"])).unsqueeze(1).to(self.device))  # (B, 1, 256, 256)
        codes = self.model.encode(x).cpu().numpy().astype(np.uint16)  # (B, 64, 64)
        return {"case": batch["case"], "level": batch["level"], "codes": codes}


def encode_split(
    data: DataSet, split: str, config: VQVAEConfig, weights: dict[str, torch.Tensor], uri: str, use_gpu: bool
) -> None:
    """Write `<uri>/<split>/part-*.parquet`; `codes.json` beside them, last. A finished split is left as it is."""
    done = storage.join(uri, split, "codes.json")
    source = hashlib.sha256()
    for name, value in sorted(weights.items()):
        source.update(name.encode() + value.numpy().tobytes())
    mark = {"data": data.fingerprint, "vqvae": source.hexdigest()}
    if storage.exists(done) and storage.read_json(done) == mark:
        return
    encoded = read_slices(data, split).map_batches(
        Encoder,
        fn_constructor_args=(config, weights),
        batch_size=ENCODE_BATCH,
        num_gpus=1 if use_gpu else 0,
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, int(cluster.cpus()) - 1)),
    )
    with Progress("codes", data.count(split), f"{split} slices") as progress:
        for number, batch in enumerate(encoded.iter_batches(batch_size=MAPS_PER_PART)):
            table = pa.table(
                {
                    "case": pa.array(batch["case"], pa.string()),
                    "level": pa.array(batch["level"], pa.int16()),
                    "codes": pa.array([codes.tobytes() for codes in batch["codes"]], pa.binary()),
                }
            )
            storage.write_table(storage.join(uri, split, f"part-{number:05d}.parquet"), table, MAPS_PER_PART)
            progress.advance(len(table))
    storage.write_text(done, json.dumps(mark) + "\n")


def _decode(table: pa.Table) -> dict[str, np.ndarray]:
    codes = np.frombuffer(b"".join(table["codes"].to_pylist()), np.uint16)
    return {"level": table["level"].to_numpy(), "codes": codes.reshape(-1, CODE_SIZE, CODE_SIZE)}  # (N, 64, 64)


def read_codes(uri: str, split: str) -> ray.data.Dataset:
    """A split's code maps as a Ray data set of `level` int16 and `codes` (64, 64) uint16."""
    folder = storage.join(uri, split)
    system, path = storage.resolve(folder)
    names = sorted(name for name, _ in storage.list_files(folder) if name.endswith(".parquet"))
    parts = ray.data.read_parquet([storage.join(path, name) for name in names], filesystem=system)
    return parts.map_batches(_decode, batch_size=None, batch_format="pyarrow")
