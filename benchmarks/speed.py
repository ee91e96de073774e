"""Throughput of the pipeline beside what one would write without it: `make bench`.

Every comparison alternates A and B several times in one run and prints the median of the ratios: these machines are
shared. The loops without Ray run in processes of their own, with the threads and, but for one, the allocator that ours
have.
"""

import argparse
import io
import os
import platform
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.fs
import torch
import torch.nn.functional as F

from benchmarks.common import ROUNDS, alone, compare, packed
from oasisgen.config.pack import PackConfig
from oasisgen.config.presets import DEMO
from oasisgen.data.pixels import to_unit
from oasisgen.metrics.ssim import ssim_loss
from oasisgen.models.vqvae import VQVAE
from oasisgen.precision import autocast
from oasisgen.training.averaging import average
from oasisgen.training.stage import StageState

if TYPE_CHECKING:
    from oasisgen.data.feed import Stored
    from oasisgen.data.slices import DataSet

STEPS = 200
WARM_UP = 10
CONFIG = DEMO.vqvae


def train_steps(batches: Iterator[torch.Tensor]) -> float:
    """Slices per second of the plain training loop over uint8 batches (B, 1, 128, 128)."""
    torch.manual_seed(0)
    model, averaged = VQVAE(CONFIG).to(memory_format=torch.channels_last), VQVAE(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=CONFIG.learning_rate, fused=True)
    started = 0.0
    for step in range(STEPS + WARM_UP):
        if step == WARM_UP:
            started = time.monotonic()
        x = to_unit(next(batches))
        with autocast(x.device):
            y = model(x)
        image = y.image.float()
        loss = F.mse_loss(image, x) + CONFIG.ssim_weight * ssim_loss(image, x) + y.quantizer_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.max_grad_norm)
        optimizer.step()
        model.quantizer.step()
        average(averaged, model, CONFIG.weight_ema_decay, step)
    return STEPS * CONFIG.batch_size / (time.monotonic() - started)


def tensor_batches(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Random crops of a tensor in memory."""
    while True:
        for rows in torch.randperm(len(images)).split(CONFIG.batch_size):
            if len(rows) == CONFIG.batch_size:
                y, x = torch.randint(0, 256 - CONFIG.crop + 1, (2,)).tolist()
                yield images[rows, y : y + CONFIG.crop, x : x + CONFIG.crop].unsqueeze(1)


def folder_batches(root: str) -> Iterator[torch.Tensor]:
    """The usual ImageFolder and DataLoader over PNG files."""
    from torchvision import datasets, transforms

    steps = [transforms.Grayscale(), transforms.RandomCrop(CONFIG.crop), transforms.PILToTensor()]
    folder = datasets.ImageFolder(root, transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(folder, CONFIG.batch_size, shuffle=True, num_workers=2, drop_last=True)
    while True:
        for images, _ in loader:
            yield images


def plain(kind: str, path: str) -> None:
    """A loop without Ray, in this process."""
    torch.set_num_threads(os.cpu_count() or 1)
    batches = folder_batches(path) if kind == "folder" else tensor_batches(torch.from_numpy(np.load(path)))
    print(train_steps(batches))


def without_ray(kind: str, path: str, allocator: dict[str, str]) -> float:
    """Slices per second of a loop without Ray, in a process of its own with these settings of its allocator."""
    return alone("benchmarks.speed", "--plain", kind, path, variables=allocator)


def ssim_rate(function: Callable[[torch.Tensor, torch.Tensor], object]) -> float:
    """Pairs per second on one thread."""
    pairs = torch.randint(0, 256, (2, 24, 256, 256), dtype=torch.uint8)
    function(*pairs)
    started = time.monotonic()
    function(*pairs)
    return 24 / (time.monotonic() - started)


def epoch_rate(stored: dict[str, "Stored"], data: "DataSet") -> float:
    """Slices per second of stage 1's loop, as its metrics say."""
    from oasisgen.training.launch import Stage, fit
    from oasisgen.training.vqvae import train_vqvae

    with tempfile.TemporaryDirectory() as out:
        config = replace(DEMO, data=data.uri, out=out, vqvae=replace(CONFIG, epochs=1, validate_slices=8))
        return fit(Stage("vqvae", train_vqvae, stored), config).metrics["slices_per_s"]


def first_epoch_rate(data: "DataSet", some: int) -> float:
    """Slices per second of a first epoch over the whole training split: reading it, and training at the loop's rate.

    The rate is that of `some` slices.
    """
    from oasisgen.data.feed import store
    from oasisgen.data.slices import read_slices

    reading = data.count("train") / packed_rate(data)  # seconds
    rate = epoch_rate({split: store(read_slices(data, split).limit(some)) for split in ("train", "validate")}, data)
    return data.count("train") / (reading + data.count("train") / rate)


def packed_rate(data: "DataSet") -> float:
    """Slices per second from shards into Ray's object store."""
    from oasisgen.data.feed import store
    from oasisgen.data.slices import read_slices

    started = time.monotonic()
    store(read_slices(data, "train"))
    return data.count("train") / (time.monotonic() - started)


def single_rate(folder: str, count: int) -> float:
    """Slices per second from one object per PNG into Ray's object store."""
    import ray.data

    from oasisgen import cluster, storage

    system, path = storage.resolve(folder)
    started = time.monotonic()
    images = ray.data.read_images(path, filesystem=system, mode="L", num_cpus=cluster.TASK_CPUS).materialize()
    assert images.count() == count
    return count / (time.monotonic() - started)


def recover(stored: dict[str, "Stored"], data: "DataSet") -> None:
    """SIGKILL a training worker in the middle of an epoch; print the time to the next step, and the steps repeated."""
    from oasisgen.training.launch import Stage, fit
    from oasisgen.training.vqvae import train_vqvae

    with tempfile.TemporaryDirectory() as out:
        log = Path(out) / "steps.log"
        log.touch()

        def noting_steps(**arguments: Any) -> None:
            end_step = StageState.end_step

            def note(state: StageState, *losses: torch.Tensor, **arguments: Any) -> None:
                end_step(state, *losses, **arguments)
                with log.open("a") as file:
                    file.write(f"{os.getpid()} {time.time()} {state.step}\n")

            StageState.end_step = note  # type: ignore[method-assign, assignment]
            train_vqvae(**arguments)

        killed: list[float] = []

        def kill() -> None:
            while len(lines := log.read_text().splitlines()) < STEPS * 4 // 5:
                time.sleep(0.05)
            killed.append(time.time())
            os.kill(int(lines[-1].split()[0]), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
        shape = replace(CONFIG, epochs=2, validate_slices=8)
        config = replace(DEMO, data=data.uri, out=out, vqvae=shape, checkpoint_seconds=5.0)
        with redirect_stdout(io.StringIO()):
            fit(Stage("vqvae", noting_steps, stored), config)
        notes = [line.split() for line in log.read_text().splitlines()]
        before = [int(step) for pid, _, step in notes if pid == notes[0][0]]
        after = [(float(when), int(step)) for pid, when, step in notes if pid != notes[0][0]]
        print(
            f"SIGKILL of a worker, checkpoints every 5 s: next step after {after[0][0] - killed[0]:.1f} s, "
            f"{before[-1] + 1 - after[0][1]} steps repeated",
            flush=True,
        )


def main() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    from oasisgen import cluster, storage
    from oasisgen.data.feed import store
    from oasisgen.data.pack import pack
    from oasisgen.data.slices import open_data_set, read_slices
    from oasisgen.metrics.ssim import ssim

    print(f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, {ROUNDS} rounds each")
    with tempfile.TemporaryDirectory() as folder, cluster.connection():
        source, data = packed(folder, validate=1)
        some = (STEPS + WARM_UP) * CONFIG.batch_size
        stored = {split: store(read_slices(data, split).limit(some)) for split in ("train", "validate")}
        feed = stored["train"].load()
        images, pngs = f"{folder}/images.npy", f"{folder}/images"
        np.save(images, feed.rows(np.arange(len(feed)), "image"))
        Path(pngs).mkdir()
        singles = Path(source).absolute() / "keras_png_slices_train"
        Path(f"{pngs}/train").symlink_to(singles)

        compare(
            {
                "training, slices through Ray": lambda: epoch_rate(stored, data),
                "a plain loop over a tensor in memory": lambda: without_ray("tensor", images, cluster.TORCH_VARIABLES),
                "a plain loop over ImageFolder": lambda: without_ray("folder", pngs, cluster.TORCH_VARIABLES),
                "the same without the variables of our workers": lambda: without_ray("folder", pngs, {}),
            }
        )
        recover(stored, data)
        if bucket := os.environ.get("S3_TEST_BUCKET"):
            root = f"s3://{bucket}/bench-{uuid.uuid4().hex[:8]}"
            pack(PackConfig(source, f"{root}/data"))
            remote = open_data_set(f"{root}/data")
            compare(
                {
                    "a first epoch from S3": lambda: first_epoch_rate(remote, some),
                    "the same from local disk": lambda: first_epoch_rate(data, some),
                }
            )
            system, path = storage.resolve(root)
            pyarrow.fs.copy_files(str(singles), f"{path}/singles", destination_filesystem=system)
            count = len(list(singles.glob("*.png")))
            compare(
                {
                    "reading shards from S3": lambda: packed_rate(remote),
                    f"reading {count} PNG objects": lambda: single_rate(f"{root}/singles", count),
                }
            )
            system.delete_dir(path)
        else:
            print("S3: left out, S3_TEST_BUCKET and AWS's variables name no server")
    torch.set_num_threads(1)

    def theirs(a: torch.Tensor, b: torch.Tensor) -> object:
        return structural_similarity_index_measure(a.unsqueeze(1).float(), b.unsqueeze(1).float(), data_range=255.0)

    compare({"SSIM pairs, one thread": lambda: ssim_rate(ssim), "torchmetrics": lambda: ssim_rate(theirs)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", nargs=2, metavar=("KIND", "PATH"))
    arguments = parser.parse_args()
    plain(*arguments.plain) if arguments.plain else main()
