"""Run a stage's training loop on Ray Train's workers, and print their progress."""

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from oasisgen import cluster, processes, storage
from oasisgen.config.stage import Training
from oasisgen.errors import UserError
from oasisgen.lock import LockLost, LockProof
from oasisgen.progress import say
from oasisgen.training import checkpoint
from oasisgen.training.controller import InlineTrainer, controller_of_job
from oasisgen.training.worker import Diverged, Driver, Worker

CHECKPOINTS = 2  # kept per stage: if the newest cannot be read, the other one is used
WORKER_RESTARTS = 3  # after a worker has died; each restart resumes from the newest checkpoint


@dataclass(frozen=True)
class Stage:
    """A stage of training: its loop and its inputs."""

    name: str  # also the name of its settings, and of its folder in the run
    loop: Callable[..., None]  # called by every rank with `config`, `worker` and the `inputs`
    inputs: dict[str, Any]
    best: str | None = None  # a metric; the checkpoint with its highest value is kept beside the newest one


def complete(stage: Stage, config: Training, lock: LockProof | None = None) -> dict[str, Any]:
    """The final state of a stage, which is run first if it is not finished.

    Raises as `fit`, and UserError if no checkpoint of the last epoch's end can be read afterwards.
    """
    uri, epochs = storage.join(config.out, stage.name), getattr(config, stage.name).epochs
    state = checkpoint.newest(uri)
    if not state or len(state["history"]) < epochs:
        if state:
            say(stage.name, f"continues after epoch {len(state['history'])}, from step {state['step']}")
        fit(stage, config, lock)
        state = checkpoint.newest(uri)
    ended = len(state["history"]) if state else 0
    if not state or ended < epochs:
        raise UserError(
            f"stage {stage.name} is only at epoch {ended} of {epochs} in the newest readable checkpoint in {uri}: run "
            "the command again"
        )
    return state


def fit(stage: Stage, config: Training, lock: LockProof | None = None) -> Any:
    """Run a stage's loop on every worker, from the newest checkpoint in storage, and print its lines.

    The workers check `lock` before every checkpoint. Raises UserError if training diverges, if workers keep failing, or
    if the lock is lost.
    """
    controller = controller_of_job()
    driver, loop = Driver(controller, lock, threads_of(config)), stage.loop

    def run_rank(inputs: dict[str, Any]) -> str | None:
        """Return the message of errors that all ranks raise: Ray would restart the workers if they were raised."""
        try:
            loop(config=config, worker=Worker.start(config.seed, driver), **inputs)
        except (Diverged, LockLost) as error:
            return str(error)
        return None

    drop_damaged_list(storage.join(config.out, stage.name))
    trainer = InlineTrainer(
        run_rank,  # type: ignore[arg-type]
        train_loop_config=stage.inputs,
        scaling_config=scaling(config),
        run_config=storing(stage, config),
    )
    training = controller.fit.remote(trainer)
    show_lines(stage.name, controller, training)
    try:
        result: Any = ray.get(training)
    except ray.train.TrainingFailedError as error:
        reason = " ".join(str(getattr(error, "cause", error)).split())
        raise UserError(
            f"stage {stage.name} failed ({WORKER_RESTARTS} restarts are allowed): {reason[-600:]}"
        ) from error
    if result.return_value:
        raise UserError(result.return_value)
    return result


def scaling(config: Training) -> ScalingConfig:
    """The number of workers, and the resources that each reserves."""
    gpus = {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
    return ScalingConfig(
        num_workers=(config.min_workers, config.workers) if config.min_workers else config.workers,  # type: ignore[arg-type]
        use_gpu=bool(gpus),
        resources_per_worker={"CPU": config.cpus_per_worker, **gpus},
    )


def storing(stage: Stage, config: Training) -> RunConfig:
    """Where a stage's checkpoints go, which are kept, and how often workers are restarted."""
    system, path = storage.resolve(config.out)
    return RunConfig(  # type: ignore[call-arg]
        name=stage.name,
        storage_path=path,
        storage_filesystem=system,
        failure_config=FailureConfig(max_failures=WORKER_RESTARTS),
        checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS, checkpoint_score_attribute=stage.best),
        worker_runtime_env={"env_vars": cluster.TORCH_VARIABLES},
    )


def show_lines(name: str, controller: Any, training: Any) -> None:
    """Print the workers' lines until the task `training` has ended."""
    ended: list[Any] = []
    while not ended:
        ended, _ = ray.wait([training], timeout=0.5)  # before the lines are taken, so that the last ones are printed
        for line in ray.get(controller.take.remote()):
            say(name, line)


def threads_of(config: Training) -> int:
    """PyTorch threads per worker: the CPUs that it reserves, rounded up.

    On a local Ray that only this job uses, the workers share all CPUs of the machine instead: with the default of one
    CPU each, the rest would be idle. If RAY_ADDRESS names that Ray, other jobs may use it too.
    """
    if processes.started() and os.environ.get("RAY_ADDRESS", "local") == "local":
        return max(1, int(cluster.cpus()) // config.workers)
    return math.ceil(config.cpus_per_worker)


def drop_damaged_list(uri: str) -> None:
    """Remove Ray's own list of a stage's checkpoints if it is damaged: a full disk or SIGKILL may truncate it.

    Ray would refuse to continue. The loops do not need the list: they find the newest checkpoint themselves.
    """
    listed = storage.join(uri, "checkpoint_manager_snapshot.json")
    with suppress(FileNotFoundError):
        data = storage.read_bytes(listed)
        try:
            json.loads(data)
        except ValueError:
            storage.remove(listed)
