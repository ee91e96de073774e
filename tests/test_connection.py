"""What Ray says when something goes wrong, as one line."""

import pytest
import ray

from oasisgen import cluster
from oasisgen.errors import UserError


@ray.remote(num_cpus=0)
class WithoutRights:
    """An actor that storage turns away as it starts, as Ray Train's controller may be."""

    def __init__(self) -> None:
        raise OSError("When creating key 'team/': ACCESS_DENIED")

    def work(self) -> None:
        """Never called."""


@pytest.mark.usefixtures("connected")
def test_an_actor_that_cannot_start_says_why() -> None:
    with pytest.raises(ray.exceptions.ActorDiedError) as died:
        ray.get(WithoutRights.remote().work.remote())  # type: ignore[attr-defined]
    assert cluster._cause(died.value) == "OSError: When creating key 'team/': ACCESS_DENIED"


def test_the_address_for_submitting_is_not_taken_for_the_head() -> None:
    with pytest.raises(UserError, match=r"RAY_ADDRESS=http://head:8265 is for `ray job submit`"):
        cluster._require_listener("http://head:8265")
