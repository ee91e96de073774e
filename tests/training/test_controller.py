import ray

from oasisgen.training.controller import controller_of_job


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
