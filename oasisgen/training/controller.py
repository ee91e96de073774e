"""One process that controls all training stages of a job.

Ray Train starts a controller, and helpers for it, for every call of `fit`. Each is a process that imports Ray Train,
and most of them PyTorch: more work than the whole training of a small run.
"""

import asyncio
from functools import lru_cache
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# The first passes Ray's data sets to workers: ours read their slices without it. The second frees the workers' CPUs
# and GPUs if the controller dies: our job then ends too, and Ray frees them.
NOT_NEEDED = (DatasetsCallback, PlacementGroupCleanerCallback)


class InlineTrainer(TorchTrainer):
    """A TorchTrainer whose `fit`, called in an actor, runs the controller in that actor's process."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, NOT_NEEDED)]

    def _initialize_and_run_controller(self, **settings: Any) -> ray.train.Result:
        controller = TrainController(**settings)
        asyncio.run(controller.run())
        return controller.get_result()


@ray.remote(num_cpus=0, concurrency_groups={"lines": 1})  # type: ignore[call-overload]
class Controller:
    """Runs a stage's controller, and passes lines from its workers to the driver."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def fit(self, trainer: InlineTrainer) -> ray.train.Result:
        """Train a stage. Raises TrainingFailedError if its workers keep failing."""
        self.lines = []
        return trainer.fit()

    @ray.method(concurrency_group="lines")
    def put(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    @ray.method(concurrency_group="lines")
    def take(self) -> list[str]:
        """Return all lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


def controller_of_job() -> Any:
    """The handle of this job's Controller, which is started when it is first needed."""
    context = ray.get_runtime_context()
    return _started(context.get_node_id(), context.get_job_id())


@lru_cache(maxsize=1)
def _started(node: str, job: str) -> Any:
    """A new Controller on the driver's node, since others may be lost; a process that connects again has a new `job`,
    or a new `node`."""
    # With `soft`, Ray mostly places an actor without CPUs elsewhere.
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    variables = {"env_vars": get_env_vars_to_propagate()}
    return Controller.options(scheduling_strategy=here, runtime_env=variables).remote()  # type: ignore[attr-defined]
