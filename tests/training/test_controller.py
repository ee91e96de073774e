from pathlib import Path
from typing import Any

import pytest
import ray

from oasisgen.data.slices import DataSet
from oasisgen.errors import UserError
from oasisgen.training import launch
from oasisgen.training.controller import controller_of_job
from oasisgen.training.launch import Stage, fit
from tests.conftest import tiny


class NoStage:
    """In place of a trainer: it says a line, as the workers do, and ends."""

    def fit(self) -> str:
        ray.get(ray.get_runtime_context().current_actor.put.remote("of this stage"))
        return "trained"


def test_all_stages_of_a_job_share_a_controller_and_none_shows_the_lines_of_another(connected: str) -> None:
    controller = controller_of_job()
    assert controller_of_job() is controller
    ray.get(controller.put.remote("a"))
    ray.get(controller.put.remote("b"))
    assert ray.get(controller.take.remote()) == ["a", "b"]
    ray.get(controller.put.remote("too late, when the driver no longer looks"))
    assert ray.get(controller.fit.remote(NoStage())) == "trained"
    assert ray.get(controller.take.remote()) == ["of this stage"]


def test_workers_that_keep_failing_end_the_stage_with_the_reason(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loop(**inputs: Any) -> None:
        raise ValueError("this worker never works")

    monkeypatch.setattr(launch, "WORKER_RESTARTS", 0)
    with pytest.raises(UserError, match=r"stage vqvae failed \(0 restarts are allowed\): .*this worker never works"):
        fit(Stage("vqvae", loop, {}), tiny(data, tmp_path))
