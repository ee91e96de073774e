import re
import time

import pytest

from oasisgen.progress import Progress, speed


def test_slow_work_is_not_shown_as_no_work() -> None:
    assert speed(0.345, "subjects") == "0.34 subjects/s"
    assert speed(4.16, "subjects") == "4.2 subjects/s"
    assert speed(61.4, "slices") == "61 slices/s"


def test_slow_work_is_not_summed_up_as_no_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress("pack", 4, "subjects") as progress:
        now += 10.0
        progress.advance(2)
        now += 10.0
        progress.advance(2)
    lines = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "4 subjects",
        "2/4 subjects, 0.2 subjects/s, 0:10 left",
        "done: 4 subjects in 0:20, 0.2 subjects/s",
    ]


def test_what_an_interrupted_job_did_is_done_and_does_not_count_for_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress("vqvae", 1000, "slices", done=600)
    assert re.fullmatch(r"0 slices/s, \? left", progress.describe())
    now += 10.0
    progress.done += 200
    assert progress.rate == 20.0
    assert progress.describe() == "20 slices/s, 0:10 left"
    progress.undo(100)
    assert progress.rate == 20.0
    assert progress.describe() == "20 slices/s, 0:15 left"
