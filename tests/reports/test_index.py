import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oasisgen import storage
from oasisgen.quality.history import FinishedBatch, last_released, name_of, read_batches, root_of
from oasisgen.quality.measures import Score
from oasisgen.quality.summary import BatchSummary, Seconds
from oasisgen.reports import figures
from oasisgen.reports.index import MOST_POINTS, WORK, render_index, table_row, trend_point, write_index
from tests.conftest import one_line, requested

REQUEST = requested(count=10, levels=(1, 2), data_fingerprint="f")
SUMMARY = BatchSummary(
    verdict="released",
    reasons=(),
    scores={name: Score(1.0, 1.0) for name in ("ms_ssim", "fid", "suspected_copies")},
    slices=10,
    rejected=0,
    request=REQUEST,
    features="eyes",
    finished="",
    seconds=Seconds(slices=5),
)


def write_batch(root: str, name: str, hour: int, **changed: Any) -> None:
    """A finished batch: the files that tell of it."""
    scores = {key: Score(1.0 + hour, 1.0) for key in SUMMARY.scores}
    summary = replace(SUMMARY, scores=scores, finished=f"2026-11-24T{hour:02d}:00:00+00:00")
    storage.write_text(f"{root}/{name}/summary.json", json.dumps(summary.to_json() | changed))
    storage.write_text(f"{root}/{name}/manifest.json", "{}")


def test_the_batches_of_a_root_are_found_and_shown(place: str) -> None:
    root = f"{place}/batches"
    assert root_of(f"{root}/first") == root
    assert root_of(f"{place}/elsewhere/first") is None
    assert last_released(read_batches(root), REQUEST, "eyes", but="tonight") is None
    write_batch(root, "b-first", 1)
    write_batch(root, "a-second", 2)
    write_batch(root, "third", 3, verdict="quarantined", reasons=["too <little> variety"], measures={})
    write_batch(root, "other", 4, count=11)
    write_batch(root, "other-eyes", 5, features="another network")
    storage.write_text(f"{root}/unfinished/config.json", "{}")
    storage.write_text(f"{root}/older/summary.json", "{}")
    assert [each.name for each in read_batches(root)] == ["b-first", "a-second", "third", "other", "other-eyes"]
    last = last_released(read_batches(root), REQUEST, "eyes", but="tonight")
    assert last
    assert last.name == "a-second"

    write_index(root)
    page = storage.read_bytes(f"{root}/index.html").decode()
    rows = page.split("<tbody")[1].split("<tr")[1:]
    names = [row.split("/report/")[0].rpartition('"')[2] for row in rows]
    assert names == ["other-eyes", "other", "third", "a-second", "b-first"]
    assert "too &lt;little&gt; variety" in rows[2]
    assert "3.000 (1.000)" in rows[3]


def test_a_newer_batch_that_another_feature_network_measured_is_named_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"{tmp_path}/batches"
    write_batch(root, "other", 1, features="other eyes")
    write_batch(root, "older", 2, features=None)  # an old version's
    assert last_released(read_batches(root), REQUEST, "eyes", but="tonight") is None
    said = one_line(capsys.readouterr().out)
    assert "older is not compared, though released: another feature network (unknown) measured it" in said
    write_batch(root, "same", 3)
    assert last_released(read_batches(root), REQUEST, "eyes", but="tonight").name == "same"  # type: ignore[union-attr]
    assert capsys.readouterr().out == ""
    write_index(root)
    page = storage.read_bytes(f"{root}/index.html").decode()
    assert [page.count(f"<td>{network}</td>") for network in ("eyes", "other eyes")] == [1, 1]


def test_a_damaged_summary_is_named_and_the_page_of_the_others_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"{tmp_path}/batches"
    write_batch(root, "good", 1)
    for name, text in {"list": "[]", "cut": '{"verdict": "rel', "lacking": '{"verdict": "released"}'}.items():
        write_batch(root, name, 2)
        storage.write_text(f"{root}/{name}/summary.json", text)
    os.mkdir(f"{root}/odd\tname")
    write_batch(root, "untimed", 3, seconds={"slices": "5"})
    write_batch(root, "unmeasured", 3, seconds={})
    write_index(root)
    assert [each.name for each in read_batches(root)] == ["good"]
    assert "good/report/" in storage.read_bytes(f"{root}/index.html").decode()
    said = capsys.readouterr().out
    assert all(f"{name}/summary.json" in said for name in ("list", "cut", "lacking", "untimed", "unmeasured"))
    assert "name is left out: " in said


def test_the_speed_is_that_of_the_last_job(tmp_path: Path) -> None:
    """A batch that was resumed near its end had a speed as if the last job had made all of it."""
    root = f"{tmp_path}/batches"
    write_batch(root, "resumed", 1, slices=20_000, made=50)
    write_batch(root, "sealed", 2, slices=20_000, made=0)  # all parts were there
    write_batch(root, "older", 3, slices=20_000)
    older = json.loads(storage.read_bytes(f"{root}/older/summary.json"))
    storage.write_text(f"{root}/older/summary.json", json.dumps({k: v for k, v in older.items() if k != "made"}))
    batches = read_batches(root)
    assert [batch.summary.slices_per_second for batch in batches] == [10.0, None, 4000.0]
    assert [table_row(batch)["cells"][-len(WORK)] for batch in batches] == ["10.0", "", "4000.0"]
    points = [trend_point(number, batch)["slices/s"] for number, batch in enumerate(batches)]
    assert points[::2] == [10.0, 4000.0]
    assert math.isnan(points[1])
    assert b"older/report/" in render_index(batches)


def test_a_batch_without_a_manifest_does_not_count_and_none_is_compared_with_itself(tmp_path: Path) -> None:
    root = f"{tmp_path}/batches"
    write_batch(root, "first", 1)
    write_batch(root, "killed", 2)
    storage.remove(f"{root}/killed/manifest.json")
    assert [each.name for each in read_batches(root)] == ["first"]
    assert last_released(read_batches(root), REQUEST, "eyes", but="second").name == "first"  # type: ignore[union-attr]
    assert last_released(read_batches(root), REQUEST, "eyes", but="first") is None


def test_a_batch_that_ends_while_another_writes_the_page_is_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, draw = f"{tmp_path}/batches", figures.curves

    def meanwhile(*arguments: Any) -> str:
        monkeypatch.setattr(figures, "curves", draw)
        write_batch(root, "second", 2)
        write_index(root)
        return draw(*arguments)

    write_batch(root, "first", 1)
    monkeypatch.setattr(figures, "curves", meanwhile)
    write_index(root)
    page = storage.read_bytes(f"{root}/index.html").decode()
    assert all(f"{name}/report/" in page for name in ("first", "second"))


def test_a_page_of_somebody_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"{tmp_path}/batches"
    write_batch(root, "first", 1)
    page = tmp_path / "batches" / "index.html"
    page.write_text("<title>My own page</title>")
    write_index(root)
    assert page.read_text() == "<title>My own page</title>"
    assert f"{page} was not written by oasisgen" in capsys.readouterr().out
    page.unlink()
    for _ in range(2):  # what it wrote itself it writes again
        write_index(root)
    assert "first/report/" in page.read_text()
    assert "not written by oasisgen" not in capsys.readouterr().out


def test_batches_that_are_known_are_not_read_again_but_leave_with_their_folders(tmp_path: Path) -> None:
    root = f"{tmp_path}/batches"
    for hour, name in enumerate(("first", "second", "third")):
        write_batch(root, name, hour)
    known = read_batches(root)
    storage.write_text(f"{root}/first/summary.json", "no longer JSON")
    shutil.rmtree(f"{root}/second")
    write_batch(root, "fourth", 5)
    assert [batch.name for batch in read_batches(root, known)] == ["first", "third", "fourth"]
    assert read_batches(root, known)[0] == known[0]
    write_index(root, known)
    assert "first/report/" in storage.read_bytes(f"{root}/index.html").decode()


def test_the_curves_show_the_newest_of_many_batches_and_the_table_all_with_their_weekdays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[list[dict[str, Any]]] = []

    def curves(points: list[dict[str, Any]], *_: Any) -> str:
        drawn.append(points)
        return ""

    monkeypatch.setattr(figures, "curves", curves)
    tuesday = replace(SUMMARY, finished="2026-11-24T01:00:00+00:00")
    nights = [FinishedBatch(f"night-{number}", tuesday) for number in range(MOST_POINTS + 2)]
    nights[-1] = FinishedBatch("undated", replace(SUMMARY, finished="some day"))
    page = render_index(nights).decode()
    assert [point["batch"] for point in drawn[0]] == list(range(3, MOST_POINTS + 3))
    assert f"Trends of the last {MOST_POINTS} batches" not in page  # there is no figure without curves
    assert page.count("/report/index.html") == MOST_POINTS + 2
    assert page.count("<td>2026-11-24 01:00:00 Tue</td>") == MOST_POINTS + 1
    assert "<td>some day</td>" in page


def test_two_batches_differ_in_whatever_folders_they_lie() -> None:
    root = "s3://bucket/team/batches"
    assert name_of(f"{root}/2026-11-24") == "2026-11-24"
    assert name_of(f"{root}/month=11/day=24") != name_of(f"{root}/month=12/day=24")
    assert name_of("/data/11/24") != name_of("/data/12/24")
