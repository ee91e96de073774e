import numpy as np
import pyarrow as pa
import pytest

from oasisgen.config.generate import GateConfig
from oasisgen.errors import UserError
from oasisgen.quality.gate import QualityFilter, judge, limits
from oasisgen.quality.measures import Score, Scores

REAL = {"ssim_real": 0.66, "ms_ssim": 0.68, "fid": 8.0, "precision": 0.7, "recall": 0.9, "suspected_copies": 0.01}


def measured(**values: float) -> Scores:
    """A batch that scores what real slices score, but for `values`."""
    return {key: Score(values.get(key, reference), reference) for key, reference in REAL.items()}


def test_a_batch_that_is_as_real_slices_are_may_be_released() -> None:
    assert judge(measured(), GateConfig()) == []


@pytest.mark.parametrize(
    ("name", "inside", "outside", "says"),
    [
        ("ssim_real", 0.65, 0.63, "not as near to real slices"),
        ("ssim_real", 0.67, 0.69, "not as near to real slices"),
        ("ms_ssim", 0.70, 0.72, "too little variety"),
        ("fid", 15.9, 16.1, "unlike real slices: fid is 16.100, must be at most 16.000 (real slices: 8.000)"),
        ("precision", 0.50, 0.48, "too many slices lie where no real ones do"),
        ("recall", 0.46, 0.44, "too many real slices lie where no synthetic ones do"),
        ("suspected_copies", 0.019, 0.021, "too many suspected copies"),
    ],
)
def test_each_fault_is_named(name: str, inside: float, outside: float, says: str) -> None:
    assert judge(measured(**{name: inside}), GateConfig()) == []
    (reason,) = judge(measured(**{name: outside}), GateConfig())
    assert says in reason


def test_more_variety_and_a_lower_fid_than_real_slices_are_no_faults() -> None:
    assert judge(measured(ms_ssim=0.5, fid=1.0, suspected_copies=0.0), GateConfig()) == []


def test_what_is_far_worse_than_the_last_released_batch_is_held_back() -> None:
    last = measured(fid=4.0)
    assert judge(measured(fid=7.9), GateConfig(), last) == []
    (reason,) = judge(measured(fid=9.0), GateConfig(), last)
    assert "must be at most 8.000 (the last released batch: 4.000)" in reason


def test_what_was_not_measured_is_not_released() -> None:
    assert judge({}, GateConfig()) == ["it was not measured"]
    some = measured()
    del some["ms_ssim"]
    assert judge(some, GateConfig()) == ["ms_ssim could not be measured: make more slices"]


def test_a_gate_can_be_widened() -> None:
    assert judge(measured(fid=30.0), GateConfig(fid=4.0)) == []


def test_slices_that_score_below_99_of_100_real_ones_are_refused() -> None:
    reference = pa.table({"copy_ratio": np.linspace(0.5, 1.5, 101), "ssim_real": np.linspace(0.4, 0.8, 101)})
    assert limits(reference, "none") == {}
    least = limits(reference, "both")
    assert least == {"copy_ratio": pytest.approx(0.51), "ssim_real": pytest.approx(0.404)}
    batch = {
        "id": np.arange(4),
        "copy_ratio": np.array([0.2, 0.9, 0.9, 0.2]),
        "ssim_real": np.array([0.6, 0.6, 0.3, 0.3]),
    }
    assert QualityFilter(least)(batch)["refused"].tolist() == [
        "suspected copy: copy_ratio 0.2000 is below 0.5100",
        "",
        "unlike real slices: ssim_real 0.3000 is below 0.4040",
        "suspected copy: copy_ratio 0.2000 is below 0.5100",
    ]
    assert QualityFilter({})(batch)["refused"].tolist() == [""] * 4


@pytest.mark.parametrize(("copies", "refuses_nothing"), [(1, False), (3, True)])
def test_a_limit_that_can_refuse_nothing_is_an_error(copies: int, refuses_nothing: bool) -> None:
    ratios = np.linspace(0.8, 1.2, 200)
    ratios[:copies] = 0.0  # held-out slices that lie in the training split too
    reference = pa.table({"copy_ratio": ratios, "ssim_real": np.full(200, 0.6)})
    if refuses_nothing:
        with pytest.raises(UserError, match=r"a threshold of copy_ratio 0\.0000 rejects nothing"):
            limits(reference, "copies")
    else:
        assert limits(reference, "copies")["copy_ratio"] > 0.7
