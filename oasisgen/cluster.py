"""Connect to Ray without its log output, and check that the cluster has enough free CPUs and GPUs."""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError
from ray.util.placement_group import placement_group, remove_placement_group

from oasisgen import process_state, s3
from oasisgen.errors import UserError
from oasisgen.head import require_ray
from oasisgen.processes import iterators_closed, seen_out
from oasisgen.progress import duration, human_bytes, say

# The environment of processes that run PyTorch on CPUs. glibc gives large blocks back to the kernel at every step,
# which costs a trainer 30-40 %: keep them. OpenMP's threads wait for each other in busy loops: let them sleep, and
# leave the CPUs to other processes.
TORCH_VARIABLES = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "PASSIVE",
}
TASK_CPUS, ACTOR_CPUS = 0.25, 0.75  # reserved by a data task and by a model actor
SLICES_PER_ACTOR = 128  # at least: it takes an actor seconds to start
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # Ray's default is 2 s: notice the end of a stage sooner
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",  # default 5 s: a preempted node may be gone soon
}
# Whatever the user has set: with 1, Ray unpickles the parameters of a column's type.
FIXED = {"RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "0"}
# A local Ray that this process starts has no node to lose, and nobody reads its metrics and events.
# On two CPUs, its background work slows training measurably (`make bench`).
ALONE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # default 5000
    "LOG_NAME_UPDATE_INTERVAL_S": "10",  # default 0.5
}
PATIENCE_SECONDS = 10  # for a job that has just ended to release its resources
LOOK_SECONDS = 30  # between two lines about waiting
STALLED_SECONDS = 120  # without progress, after which Ray Data gives up


@dataclass(frozen=True)
class Actors:
    """Resources for model actors: samplers, encoders, reconstructors, feature extractors."""

    gpus: float = 0.0  # per actor
    wait_minutes: float = 0.0  # for free resources
    flag: str = "--gpus-per-worker"  # the command-line flag that sets `gpus`

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of one actor."""
        return {"CPU": ACTOR_CPUS} | ({"GPU": self.gpus} if self.gpus else {})


@contextmanager
def connection() -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS, or else start a local Ray, which is shut down at the end.

    At the end, this process's environment variables, log levels, warning filters, SIGTERM handler and Ray Data
    context are restored. Raises UserError if the cluster cannot be reached.
    """
    alone = os.environ.get("RAY_ADDRESS") == "local"
    with (
        process_state.environment(DEFAULTS | (ALONE if alone else {}), FIXED),
        process_state.quiet("ray", "ray.data", "ray.train"),
        process_state.sigterm_handler(),
    ):
        require_ray()
        with seen_out():
            _connect()
            process_state.interrupt_on_sigterm()  # after ray.init, which installs its own handler
            try:
                with iterators_closed(), ray.data.DataContext.current(_data_context()):
                    yield
            except ray.exceptions.RayError as error:
                raise UserError(_cause(error)) from error
            except ExecutionTimeoutError as error:
                room = "another job may hold the CPUs or GPUs that it asks for (--wait-minutes)"
                raise UserError(f"no progress for {STALLED_SECONDS} s: {room}") from error


def _connect() -> None:
    """`ray.init`, without its output and with access to storage."""
    try:
        ray.init(
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=False,
            configure_logging=True,
            runtime_env=_storage_access(),
        )
    except Exception as error:  # Ray raises no more specific type when its processes do not start in time
        reason = (str(error) or type(error).__name__).splitlines()[0]
        address = os.environ.get("RAY_ADDRESS", "")
        if address == "local":
            raise UserError(f"Ray did not start on this machine ({reason}): it may be too busy, try again") from None
        raise UserError(f"Ray at RAY_ADDRESS={address} cannot be reached: {reason}") from None


def _data_context() -> ray.data.DataContext:
    """The settings that every job needs of Ray Data."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True  # the same job reads and writes in the same order
    context.raise_original_map_exception = True  # a task's UserError is raised as a UserError
    context.use_datasource_v2 = False  # the V2 Parquet source takes 1.3 s to start, the first one 0.2 s
    context.execution_no_progress_timeout_s = STALLED_SECONDS
    return context


def _storage_access() -> dict[str, Any] | None:
    """A runtime environment that gives the workers of a running cluster this process's access to S3.

    Ray ships it as a function, because `env_vars` would show the secrets in Ray's logs and in `ps`. A Ray that this
    process starts inherits the variables.
    """
    variables = {} if os.environ.get("RAY_ADDRESS") == "local" else s3.environment()
    if not variables:
        return None

    def set_up() -> None:
        os.environ.update(variables)

    return {"worker_process_setup_hook": set_up}


def _cause(error: BaseException) -> str:
    """Why a task failed, in one line. Raises `error` again if neither the user nor the cluster caused it."""
    cause = error
    while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause:
        cause = cause.cause
    if isinstance(cause, UserError | OSError | ray.exceptions.RayError):
        lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", str(cause)).splitlines() if line.strip()]
        # The message of an actor that did not start is a whole traceback: its last line is the reason.
        return lines[-1] if isinstance(cause, ray.exceptions.ActorDiedError) else lines[0]
    raise error


def cpus() -> float:
    """CPUs of the whole cluster."""
    return float(ray.cluster_resources().get("CPU", 0))


def tasks() -> dict[str, Any]:
    """Arguments for data tasks: one per CPU. Ray would run more, and start a new process for each."""
    return {"num_cpus": TASK_CPUS, "concurrency": max(1, int(cpus()))}


def actors(gpus: float | None, wait_minutes: float, flag: str) -> Actors:
    """Model actors with `gpus` GPUs each; None: at most one, if the cluster has any once an actor fits.

    Raises UserError if no actor fits in time.
    """
    if gpus is None and not gpus_there():
        require_actors(Actors(0, wait_minutes, flag))  # an autoscaler may have to start the first node
    return Actors(min(1.0, gpus_there()) if gpus is None else gpus, wait_minutes, flag)


def require_actors(actors: Actors) -> None:
    """As `require`, for one model actor, one read task and one write task."""
    shape = f"{ACTOR_CPUS:g} CPUs" + (f", {actors.gpus:g} GPU{'s' if actors.gpus > 1 else ''}" if actors.gpus else "")
    require(
        [actors.bundle, {"CPU": TASK_CPUS}, {"CPU": TASK_CPUS}],
        f"a model actor ({shape}), a reading and a writing task",
        f"use CPUs ({actors.flag} 0)" if actors.gpus else "add a node",
        actors.wait_minutes,
    )


def pool(actors: Actors, slices: int) -> dict[str, Any]:
    """`map_batches` arguments for a pool of as many model actors as `slices` are worth, and as fit beside one read task
    and one write task.

    On two CPUs at most two actors fit. All actors and both tasks must fit at once, or the pipeline deadlocks. Raises
    UserError if not even one fits: another job may have started since this one did.
    """
    require_actors(actors)
    most = min(int((cpus() - 2 * TASK_CPUS) / ACTOR_CPUS), -(-slices // SLICES_PER_ACTOR))
    if actors.gpus:
        most = min(most, int(gpus_there() / actors.gpus))
    return {
        "num_cpus": ACTOR_CPUS,
        "num_gpus": actors.gpus,
        "compute": ActorPoolStrategy(min_size=1, max_size=max(1, most)),
        "runtime_env": {"env_vars": TORCH_VARIABLES},
    }


def require_workers(workers: int, cpus_per_worker: float, gpus_per_worker: float, wait_minutes: float = 0.0) -> None:
    """As `require`, for the training workers and one CPU for data tasks."""
    each = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
    shape = " + ".join(f"{count:g} {kind}s" for kind, count in each.items())
    require(
        [each] * workers + [{"CPU": TASK_CPUS}] * round(1 / TASK_CPUS),
        f"{workers} workers x {shape} and 1 CPU for data tasks",
        "lower --workers or " + " or ".join(f"--{kind.lower()}s-per-worker" for kind in each),
        wait_minutes,
    )


def require(bundles: list[dict[str, float]], what: str, fix: str, wait_minutes: float = 0.0) -> None:
    """Raise UserError unless all `bundles` of CPUs and GPUs fit on the cluster at once, now or within `wait_minutes`.

    A pending placement group makes an autoscaler start nodes. A busy cluster gets PATIENCE_SECONDS in any case.
    """
    needs = {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU")}
    has = ray.cluster_resources()
    for kind, need in needs.items():
        if need > has.get(kind, 0) and not wait_minutes:
            more = f"{fix}, or let an autoscaler add nodes (--wait-minutes)"
            raise UserError(f"{what} need {need:g} {kind}s, the cluster has {has.get(kind, 0):g}: {more}")
    left = max(PATIENCE_SECONDS, 60 * wait_minutes)
    deadline = time.monotonic() + left
    group = placement_group(bundles)
    try:
        while not group.wait(min(LOOK_SECONDS, left)):
            left, has, are_free = deadline - time.monotonic(), ray.cluster_resources(), free()
            kinds = [kind for kind, need in needs.items() if need]
            room = ", ".join(f"{are_free[kind]:g} of {has.get(kind, 0):g} {kind}s" for kind in kinds)
            if left < 1:
                raise UserError(f"{what} do not fit, {room} are free: wait for other jobs (--wait-minutes), or {fix}")
            say("wait", f"for {what}, {room} are free, {duration(left)} left")
    finally:
        remove_placement_group(group)


def require_store(count: int, cpus: float, gpus: float = 0, fix: str = "") -> None:
    """Raise UserError, which ends in `fix`, if `count` bytes are `too_small`."""
    if full := too_small(count, cpus, gpus):
        raise UserError(f"{full}: start its Ray with a larger --object-store-memory{fix}")


def too_small(count: int, cpus: float, gpus: float = 0) -> str:
    """In words, a node whose object store is smaller than `count` bytes: the driver's, or one where a worker with
    `cpus` and `gpus` fits. Empty if there is none.

    Ray would spill the data to disk and read it back again and again.
    """
    here = ray.get_runtime_context().get_node_id()
    for node in filter(lambda node: node["Alive"], ray.nodes()):
        store = node["Resources"].get("object_store_memory", 0)
        if (room_for(node, cpus, gpus) or node["NodeID"] == here) and store < count:
            return (
                f"the data set needs {human_bytes(count)} of object store on the driver's node and on every worker "
                f"node, but node {node['NodeManagerAddress']} has {human_bytes(store)}"
            )
    return ""


def require_memory(count: int, workers: int, cpus: float, gpus: float = 0) -> None:
    """Raise UserError if a node has not `count` bytes of memory, as Ray counts it, for each of the workers with `cpus`
    and `gpus` that it may get."""
    for node in filter(lambda node: node["Alive"], ray.nodes()):
        memory, most = node["Resources"].get("memory", 0), min(workers, room_for(node, cpus, gpus))
        if most * count > memory:
            raise UserError(
                f"streaming needs {human_bytes(count)} of memory per worker, but node {node['NodeManagerAddress']} has "
                f"{human_bytes(memory)} for up to {most}: lower --workers, or use nodes with more memory"
            )


def room_for(node: dict[str, Any], cpus: float, gpus: float) -> int:
    """How many workers with `cpus` and `gpus` each fit on a node of `ray.nodes()`, if nothing else runs there."""
    has, asked = node["Resources"], {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return int(min(has.get(kind, 0) / count for kind, count in asked.items()))


def gpus_there() -> float:
    """GPUs of the whole cluster."""
    return float(ray.cluster_resources().get("GPU", 0))


def free() -> dict[str, float]:
    """Free resources of the whole cluster: CPU, GPU, and `store`, bytes of object store."""
    has = ray.available_resources()
    return {"CPU": has.get("CPU", 0), "GPU": has.get("GPU", 0), "store": has.get("object_store_memory", 0)}
