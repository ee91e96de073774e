from pathlib import Path

import pytest

from oasisgen.reports.batch import write_batch_report
from oasisgen.sampling.parts import SUMMARY

SUMMARY_JSON = {
    "verdict": "quarantined",
    "reasons": ["too little variety"],
    "compared_with": None,
    "measures": {"fid": {"value": 9.0, "floor": 8.0, "distance": 1.0}},
    "measured_on": 8,
    "slices": 0,
    "rejected": 8,
    "codes_in_use_mean": None,
    "model": "abcdef" * 8,
    "base_seed": 3,
    "count": 8,
    "format": "png",
    "inception": None,
    "features": "123456" * 8,
    "data": "/root/datasets/oasis",
    "devices": ["cpu"],
    "version": "1.0.0",
    "finished": "2026-11-24T01:00:00+00:00",
    "seconds": {"slices": 5},
}


@pytest.mark.parametrize(
    ("inception", "says"),
    [
        (None, "Feature network: the one trained with this model (123456123456)."),
        ("fedcba" * 8, "Feature network: Inception v3 (weights fedcbafedcba)."),
    ],
)
def test_the_report_names_the_features_that_were_used(inception: str | None, says: str, tmp_path: Path) -> None:
    summary = SUMMARY_JSON | {"inception": inception, "features": inception or SUMMARY_JSON["features"]}
    write_batch_report(str(tmp_path), summary, SUMMARY.empty_table(), None, None)
    page = (tmp_path / "report" / "index.html").read_text()
    assert says in page
    assert ("Inception" in page) == bool(inception)
