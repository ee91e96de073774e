"""What may be released: which slices of a batch, and whether the batch as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from oasisgen.config.generate import GateConfig, Reject
from oasisgen.errors import UserError

Measures = dict[str, dict[str, float]]  # name -> value, floor, distance


PERCENTILE = 1  # of what held-out slices score: one of them in a hundred would be refused too


LEAST_LIMIT = {"copy_ratio": 0.01, "ssim_real": 0.0}  # a copy has 0, a slice unlike all others about 0


SAYS = {"copy_ratio": "suspected copy", "ssim_real": "unlike real slices"}  # of a slice with too low a measure


REFUSED_BY: dict[Reject, tuple[str, ...]] = {
    "none": (),
    "copies": ("copy_ratio",),
    "outliers": ("ssim_real",),
    "both": tuple(SAYS),
}


def limits(floor: pa.Table, reject: Reject) -> dict[str, float]:
    """The least that a slice must have of each measure, from those of held-out slices, not to be refused.

    Raises UserError if a limit could refuse nothing: more than one held-out slice in a hundred is itself a copy of a
    training slice, or unlike all others.
    """
    least = {name: float(np.percentile(floor[name].to_numpy(), PERCENTILE)) for name in REFUSED_BY[reject]}
    for name, limit in least.items():
        if not limit > LEAST_LIMIT[name]:
            raise UserError(
                f"a limit of {name} {limit:.4f} refuses nothing, it must be above {LEAST_LIMIT[name]}: more than "
                f"{PERCENTILE} % of held-out slices are copies, blank or unlike all others; mend them, pack again"
            )
    return least


@dataclass(frozen=True)
class QualityFilter:
    """Says in `refused` why each slice of a batch of columns may not be kept; empty where it may."""

    least: dict[str, float]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Measures (N,) and more -> the same, with `refused` (N,) str."""
        reasons = np.full(len(batch["id"]), "", dtype=object)
        for name, least in self.least.items():
            for row in np.flatnonzero((batch[name] < least) & (reasons == "")):
                value = batch[name][row]
                reasons[row] = f"{SAYS[name]}: {name} {value:.4f} is below {least:.4f}"
        return batch | {"refused": reasons.astype(str)}


def judge(measures: Measures, gate: GateConfig, last: Measures | None = None) -> list[str]:
    """Why a batch may not be released: a line for each fault, none where it may.

    Its measures are held against their floors, and against those of the last released batch, if there is one.
    """
    if not measures:
        return ["it was not measured"]
    values = {name: measure["value"] for name, measure in measures.items()}
    floors = {name: measure["floor"] for name, measure in measures.items()}
    reasons = _faults(values, floors, gate, "real slices")
    if last:
        before = {name: measure["value"] for name, measure in last.items()}
        reasons += _faults(values, before, gate, "the last released batch")
    return reasons


def _faults(values: dict[str, float], others: dict[str, float], gate: GateConfig, whose: str) -> list[str]:
    bounds: dict[str, Callable[[float], tuple[float, float]]] = {  # measure -> least, most
        "ssim_real": lambda other: (other - gate.ssim_real, other + gate.ssim_real),
        "ms_ssim": lambda other: (0.0, other + gate.ms_ssim),
        "fid": lambda other: (0.0, other * gate.fid),
        "precision": lambda other: (other * gate.precision, 1.0),
        "recall": lambda other: (other * gate.recall, 1.0),
        "suspected_copies": lambda other: (0.0, other + gate.copies),
    }
    says = {
        "ssim_real": "not as near to real slices as they are to each other",
        "ms_ssim": "too little variety",
        "fid": "unlike real slices",
        "precision": "too many slices lie where no real ones do",
        "recall": "too many real slices lie where no synthetic ones do",
        "suspected_copies": "too many suspected copies of training slices",
    }
    faults = []
    for name, limits_of in bounds.items():
        if name not in values or name not in others:
            faults.append(f"{name} could not be measured: make more slices")
            continue
        least, most = limits_of(others[name])
        if not least <= values[name] <= most:
            bound = f"least {least:.3f}" if values[name] < least else f"most {most:.3f}"
            has = f"{whose}: {others[name]:.3f}"
            faults.append(f"{says[name]}: {name} is {values[name]:.3f}, must be at {bound} ({has})")
    return faults
