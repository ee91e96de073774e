from dataclasses import replace
from pathlib import Path

import pytest

from oasisgen.quality.measures import Score
from oasisgen.quality.rows import gather
from oasisgen.quality.summary import BatchSummary, Seconds
from oasisgen.reports.batch import write_batch_report
from tests.conftest import requested

BATCH = BatchSummary(
    verdict="quarantined",
    reasons=("too little variety",),
    scores={"fid": Score(9.0, 8.0)},
    measured_on=8,
    slices=0,
    rejected=8,
    request=requested(model="abcdef" * 8),
    features="123456" * 8,
    data="/root/datasets/oasis",
    devices=("cpu",),
    version="1.0.0",
    finished="2026-11-24T01:00:00+00:00",
    seconds=Seconds(slices=5),
)


@pytest.mark.parametrize(
    ("inception", "says"),
    [
        (None, "Feature network: the one in the model bundle (123456123456)."),
        ("fedcba" * 8, "Feature network: Inception v3 (weights fedcbafedcba)."),
    ],
)
def test_the_report_names_the_features_that_were_used(inception: str | None, says: str, tmp_path: Path) -> None:
    request = replace(BATCH.request, inception=inception)
    summary = replace(BATCH, request=request, features=inception or BATCH.features)
    write_batch_report(str(tmp_path), summary, gather([], [], None), None, None, (256, 256))
    page = (tmp_path / "report" / "index.html").read_text()
    assert says in page
    assert ("Inception" in page) == bool(inception)
