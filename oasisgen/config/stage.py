"""What every stage of training must know, whatever it trains."""

from typing import Protocol


class Training(Protocol):
    """Where and how a stage is trained. The stage's own settings are in the field of its name.

    A TrainConfig is one, and so is a SegmenterTraining.
    """

    @property
    def out(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def cpus_per_worker(self) -> float: ...
    @property
    def gpus_per_worker(self) -> float: ...
    @property
    def min_workers(self) -> int: ...
    @property
    def checkpoint_seconds(self) -> float: ...
