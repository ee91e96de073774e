"""Decide what may be released: which slices of a batch, and the batch as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from oasisgen.config.generate import GateConfig, Reject
from oasisgen.errors import UserError
from oasisgen.quality.measures import MEASURES, Scores

PERCENTILE = 1  # of what held-out slices score: one held-out slice in a hundred would be rejected too


def limits(reference: pa.Table, reject: Reject) -> dict[str, float]:
    """The threshold of each measure that `reject` applies: slices below it are rejected.

    `reference` has the measures of held-out slices. Raises UserError if a threshold could reject nothing: more than one
    held-out slice in a hundred is itself a copy of a training slice, or unlike all others.
    """
    least = {}
    for key, measure in MEASURES.items():
        rule = measure.reject
        if not rule or reject not in (rule.reject, "both"):
            continue
        least[key] = float(np.percentile(reference[key].to_numpy(), PERCENTILE))
        if not least[key] > rule.useless:
            raise UserError(
                f"a threshold of {key} {least[key]:.4f} rejects nothing, it must be above {rule.useless}: more than "
                f"{PERCENTILE} % of held-out slices are copies, blank or unlike all others; fix them and pack again"
            )
    return least


@dataclass(frozen=True)
class QualityFilter:
    """Says in `refused` why each slice of a batch of columns is rejected; empty where it is kept."""

    least: dict[str, float]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Measures (N,) and more -> the same, with `refused` (N,) str."""
        reasons = np.full(len(batch["id"]), "", dtype=object)
        for key, least in self.least.items():
            rule = MEASURES[key].reject
            assert rule, f"{key} rejects no slices"
            for row in np.flatnonzero((batch[key] < least) & (reasons == "")):
                reasons[row] = f"{rule.fault}: {key} {batch[key][row]:.4f} is below {least:.4f}"
        return batch | {"refused": reasons.astype(str)}


def judge(scores: Scores, gate: GateConfig, last: Scores | None = None) -> list[str]:
    """The reasons why a batch may not be released, one line for each; none if it may.

    Its scores are compared with their references and, if there is one, with the scores of the last released batch.
    """
    if not scores:
        return ["it was not measured"]
    values = {key: score.value for key, score in scores.items()}
    reasons = _faults(values, {key: score.reference for key, score in scores.items()}, gate, "real slices")
    if last:
        before = {key: score.value for key, score in last.items()}
        reasons += _faults(values, before, gate, "the last released batch")
    return reasons


def _faults(values: Mapping[str, float], others: Mapping[str, float], gate: GateConfig, whose: str) -> list[str]:
    faults = []
    for key, measure in MEASURES.items():
        if not measure.gate:
            continue
        if key not in values or key not in others:
            faults.append(f"{key} could not be measured: make more slices")
            continue
        least, most = measure.bounds(others[key], gate)
        if not least <= values[key] <= most:
            bound = f"least {least:.3f}" if values[key] < least else f"most {most:.3f}"
            has = f"{whose}: {others[key]:.3f}"
            faults.append(f"{measure.gate.fault}: {key} is {values[key]:.3f}, must be at {bound} ({has})")
    return faults
