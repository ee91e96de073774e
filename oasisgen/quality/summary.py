"""`summary.json`: the record of a finished batch."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from oasisgen import storage
from oasisgen.documents import Count, Finite
from oasisgen.quality.measures import MEASURES, Score
from oasisgen.sampling.manifest import Verdict
from oasisgen.sampling.request import BatchRequest, read_with_request

FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """How long the last job that worked on a batch took for each step."""

    reference: Annotated[Finite, Field(alias="floor")] = 0.0
    slices: Finite
    measures: Finite = 0.0

    def to_json(self) -> dict[str, float]:
        """As `summary.json` has it, where the reference is called `floor`."""
        return {"floor": self.reference, "slices": self.slices, "measures": self.measures}


@dataclass(frozen=True, kw_only=True)
class BatchSummary:
    """What `summary.json` says. Fields with a default are missing in batches of older versions."""

    verdict: Verdict
    reasons: tuple[str, ...]
    compared_with: str | None = None  # the name of the last released batch of the same request
    scores: Annotated[dict[str, Score], Field(alias="measures")]
    measured_on: Count = 0  # so many synthetic slices, and as many real ones
    slices: Count
    rejected: Count
    codes_in_use_mean: Finite | None = None
    slices_per_level: dict[str, Count] = field(default_factory=dict)
    request: BatchRequest
    data: str | None = None
    features: str | None = None  # digest of the weights whose features were used
    devices: tuple[str, ...] = ()
    version: str = ""
    finished: str
    seconds: Seconds
    # Slices, rejected ones too, that the last job made in `seconds.slices`. None in batches of older versions: they do
    # not tell whether they were resumed, so all of their slices count as made by the last job.
    made: Count | None = None

    @property
    def slices_per_second(self) -> float | None:
        """How fast the last job made slices; None if it made none."""
        made = self.slices if self.made is None else self.made
        return made / max(1.0, self.seconds.slices) if made else None

    def to_json(self) -> dict[str, Any]:
        """As the file has it: the fields of the request stand beside the others."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "compared_with": self.compared_with,
            "measures": {key: score.to_json() for key, score in self.scores.items()},
            "measured_on": self.measured_on,
            "slices": self.slices,
            "rejected": self.rejected,
            "codes_in_use_mean": self.codes_in_use_mean,
            "slices_per_level": self.slices_per_level,
            **self.request.to_json(),
            "data": self.data,
            "features": self.features,
            "devices": list(self.devices),
            "version": self.version,
            "finished": self.finished,
            "seconds": self.seconds.to_json(),
            "made": self.made,
        }


def read_summary(out: str) -> BatchSummary:
    """The summary of the batch at `out`; measures that another version had are left out.

    Raises FileNotFoundError, and InvalidFile where it is damaged.
    """
    summary = read_with_request(storage.join(out, FILE), BatchSummary)
    return replace(summary, scores={key: summary.scores[key] for key in MEASURES if key in summary.scores})
