"""Run a stage's loop on Ray Train's workers, its progress shown by the driver."""

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from oasisgen import cluster, processes, storage
from oasisgen.config.train import TrainConfig
from oasisgen.errors import UserError
from oasisgen.lock import LockLost, LockProof
from oasisgen.progress import say
from oasisgen.training import checkpoint
from oasisgen.training.worker import Diverged, Driver

CHECKPOINTS = 2  # kept of a stage: where the newest cannot be read, the other serves
WORKER_RESTARTS = 3  # of a worker that died; each resumes from the latest checkpoint


@ray.remote(num_cpus=0)
class Mailbox:
    """Lines on their way from the workers to the driver."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put(self, line: str) -> None:
        """Leave a line."""
        self.lines.append(line)

    def take(self) -> list[str]:
        """All lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


def complete(
    stage: str,
    loop: Callable[..., None],
    config: TrainConfig,
    inputs: dict[str, Any],
    lock: LockProof | None = None,
    best: str | None = None,
) -> dict[str, Any]:
    """The state at the end of a stage, which is run first if it is not over. As `fit`.

    Raises UserError, too, if the checkpoints that can be read then do not reach the end of the last epoch.
    """
    uri, epochs = storage.join(config.out, stage), getattr(config, stage).epochs
    state = checkpoint.newest(uri)
    if not state or len(state["history"]) < epochs:
        if state:
            say(stage, f"continues after epoch {len(state['history'])}, from step {state['step']}")
        fit(stage, loop, config, inputs, lock, best)
        state = checkpoint.newest(uri)
    ended = len(state["history"]) if state else 0
    if not state or ended < epochs:
        raise UserError(
            f"stage {stage} is at epoch {ended} of {epochs} after training, by the checkpoints of {uri} that can be "
            "read: run the command again"
        )
    return state


def fit(
    stage: str,
    loop: Callable[..., None],
    config: TrainConfig,
    inputs: dict[str, Any],
    lock: LockProof | None = None,
    best: str | None = None,
) -> Any:
    """Run `loop(config=…, driver=…, **inputs)` on every worker, resuming what storage holds of this stage.

    The workers check `lock` before every checkpoint. Keeps the latest checkpoint, and those with the highest metric
    `best`. Raises UserError where the loop diverged, where workers keep failing, and where the lock was lost.
    """
    # Other nodes may go. Not `soft`: Ray then puts an actor without CPUs elsewhere more often than not.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    arguments = {"config": config, "driver": Driver(mailbox, lock, threads_of(config)), **inputs}

    def guarded(arguments: dict[str, Any]) -> str | None:
        """What all ranks raise alike is returned instead: Ray would start the workers again, to the same end."""
        try:
            loop(**arguments)
        except (Diverged, LockLost) as error:
            return str(error)
        return None

    drop_damaged_list(storage.join(config.out, stage))
    system, path = storage.resolve(config.out)
    trainer = TorchTrainer(
        guarded,  # type: ignore[arg-type]
        train_loop_config=arguments,
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.workers) if config.min_workers else config.workers,  # type: ignore[arg-type]
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker}
            | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=stage,
            storage_path=path,
            storage_filesystem=system,
            failure_config=FailureConfig(max_failures=WORKER_RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS, checkpoint_score_attribute=best),
            worker_runtime_env={"env_vars": cluster.MALLOC},
        ),
    )
    # `fit` blocks, so it has a thread of its own; this one shows the lines and can be interrupted.
    pool = ThreadPoolExecutor(1)
    future = pool.submit(trainer.fit)
    while True:
        finished = future.done()
        for line in ray.get(mailbox.take.remote()):
            say(stage, line)
        if finished:
            break
        time.sleep(0.5)
    try:
        result: Any = future.result()
    except ray.train.TrainingFailedError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"stage {stage} failed ({WORKER_RESTARTS} restarts are allowed): {reason[-600:]}") from error
    if result.return_value:
        raise UserError(result.return_value)
    return result


def threads_of(config: TrainConfig) -> int:
    """Threads that a worker computes with: those of the CPUs that it reserves.

    Where Ray was started by this job, for itself, the workers share all CPUs of the machine instead: with the default
    of one CPU each, the others would lie idle. If RAY_ADDRESS names that Ray, other jobs use it too.
    """
    if processes.started() and os.environ.get("RAY_ADDRESS", "local") == "local":
        return max(1, int(cluster.cpus()) // config.workers)
    return math.ceil(config.cpus_per_worker)


def drop_damaged_list(uri: str) -> None:
    """Remove Ray's own list of a stage's checkpoints where it is damaged: a full disk or SIGKILL may cut it short.

    Ray would refuse to go on. The loops do not need it: they look for the newest checkpoint themselves.
    """
    listed = storage.join(uri, "checkpoint_manager_snapshot.json")
    with suppress(FileNotFoundError):
        data = storage.read_bytes(listed)
        try:
            json.loads(data)
        except ValueError:
            storage.remove(listed)
