"""The split of every case: from folders, a table or a hash."""

from collections import Counter
from pathlib import Path

import pytest

from oasisgen import storage
from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Case
from oasisgen.data.sources import survey
from oasisgen.data.splits import assign_splits, split_of
from oasisgen.data.text_tables import key_of, read_text_table
from oasisgen.errors import UserError

SCANS = [
    Case(case=f"OAS1_{number:04d}_MR{scan}", subject=f"OAS1_{number:04d}", split="")
    for number in range(1, 201)
    for scan in (1, 2)
]


def config(**flags: str) -> PackConfig:
    return PackConfig("raw", "out", **flags)  # type: ignore[arg-type]


def by_table(folder: Path, text: str, cases: list[Case]) -> tuple[dict[str, str], list[str]]:
    """The split of each case by a table, and the cases that are left out."""
    (folder / "splits.csv").write_text(text)
    found, left_out = assign_splits(config(), cases, read_text_table(str(folder / "splits.csv"), "--splits"))
    return {case.case: case.split for case in found}, [file.path for file in left_out]


def test_a_hash_keeps_subjects_whole_and_in_their_split_when_others_are_added() -> None:
    found, left_out = assign_splits(config(split="0.6,0.2,0.2"), SCANS, None)
    splits = {case.case: case.split for case in found}
    assert len(splits) == len(SCANS)
    assert not left_out
    assert len({(case.subject, case.split) for case in found}) == 200
    counts = Counter(split_of(str(number), "0.6,0.2,0.2", 0) for number in range(10_000))
    assert [counts[name] for name in ("train", "validate", "test")] == pytest.approx([6000, 2000, 2000], abs=120)
    fewer, _ = assign_splits(config(split="0.6,0.2,0.2"), SCANS[100:200], None)
    assert all(splits[case.case] == case.split for case in fewer)
    assert split_of("003", "0.6,0.2,0.2", 0) == split_of("OAS1_0003", "0.6,0.2,0.2", 0) == splits["OAS1_0003_MR1"]
    assert any(split_of(case.subject, "0.6,0.2,0.2", 1) != case.split for case in found)


def test_a_source_without_splits_gets_the_default_ones_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = assign_splits(config(), SCANS, None)
    assert "the source names no splits: --split 0.8,0.1,0.1 --split-seed 0 is used" in capsys.readouterr().out
    assert found == assign_splits(config(split="0.8,0.1,0.1"), SCANS, None)[0]


def test_the_splits_of_the_source_stay_and_cases_without_one_are_left_out() -> None:
    cases = [Case(case=name, subject=name, split=split) for name, split in (("b", "test"), ("a", "train"), ("c", ""))]
    found, left_out = assign_splits(config(), cases, None)
    assert [(case.case, case.split) for case in found] == [("a", "train"), ("b", "test")]
    assert left_out == [("c", "a case that is in no split of the source")]
    with pytest.raises(UserError, match="--split-seed 1 is not used, since the source names the splits: leave it out"):
        assign_splits(PackConfig("raw", "out", split_seed=1), cases, None)


@pytest.mark.parametrize(
    "text",
    [
        "subject,split\nOAS1_0001,train\nOAS1_0002,validate\n",
        "Subject\tSPLIT\nOAS1_0001\tTraining\n\nOAS1_0002\tval\n",
        "\ufeffcase;age;split\r\nOAS1_0001_MR1;7;train\r\nOAS1_0001_MR2;7;train\r\nOAS1_0002_MR1;8;validation\r\n",
        "split,subject_id\ntrain,1\nvalid,002\n",
    ],
)
def test_a_table_names_subjects_or_cases_and_the_others_are_left_out(text: str, tmp_path: Path) -> None:
    splits, left_out = by_table(tmp_path, text, SCANS[:8])
    assert splits == {
        "OAS1_0001_MR1": "train",
        "OAS1_0001_MR2": "train",
        "OAS1_0002_MR1": "validate",
        "OAS1_0002_MR2": "validate",
    }
    assert left_out == ["OAS1_0003_MR1", "OAS1_0003_MR2", "OAS1_0004_MR1", "OAS1_0004_MR2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,split\n1,train\n2,validate\n001,test\n", r"line 2 puts subject OAS1_0001 in train, line 4 in test"),
        ("case,split\nOAS1_0001_MR1,train\nOAS1_0001_MR2,validate\n", r"line 2 puts .* in train, line 3 in validate"),
        ("subject,split\n1,train\n2,holdout\n", r"line 3: split is 'holdout': must be train, validate or test"),
        ("subject,split\n1,train\n2,train\n", r"none of 4 cases is in validate: add subjects of that split"),
        (
            "subject,split\nx,train\n",
            r"no row of .* its line 2 names x, .* has case OAS1_0001_MR1 of subject OAS1_0001",
        ),
        ("subject,fold\n1,train\n", r"has no column split"),
        ("name,split\n1,train\n", r"has no column that names the subject: call it one of case, "),
    ],
)
def test_a_table_that_contradicts_itself_or_fits_nothing_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        by_table(tmp_path, text, SCANS[:8])


def test_rows_of_no_case_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_table(tmp_path, "subject,split\n1,train\n2,val\n777,train\n778,train\n", SCANS[:8])
    assert "splits.csv name no case of the source: 777, 778" in capsys.readouterr().out


def test_a_subject_in_two_splits_of_the_source_is_an_error_unless_another_split_is_given(tmp_path: Path) -> None:
    cases = [Case(case=name, subject=subject, split=split) for name, subject, split in (
        ("a", "001", "train"), ("b", "1", "validate"), ("c", "2", "validate"))]  # fmt: skip
    with pytest.raises(UserError, match=r"subject 001 is in train \(case a\) and in validate \(case b\): move one"):
        assign_splits(config(), cases, None)
    splits, _ = by_table(tmp_path, "subject,split\n1,train\n2,validate\n", cases)
    assert splits == {"a": "train", "b": "train", "c": "validate"}
    by_hash, _ = assign_splits(PackConfig("raw", "out", split=".6,.3,.1", split_seed=3), cases, None)
    assert [(case.case, case.subject) for case in by_hash if case.subject != "2"] == [("a", "001"), ("b", "001")]
    assert {case.subject for case in by_hash} == {"001", "2"}


def test_two_cases_of_one_name_are_refused_whatever_splits_them(tmp_path: Path) -> None:
    cases = [Case(case="P1_1", subject=subject, split="") for subject in ("P1", "P1_1")]
    with pytest.raises(UserError, match=r"subjects P1 and P1_1 both have a case P1_1: rename the files of one"):
        assign_splits(config(split="0.5,0.5,0"), cases, None)
    with pytest.raises(UserError, match="both have a case P1_1"):
        by_table(tmp_path, "subject,split\nP1,train\nP1_1,validate\n", cases)


@pytest.mark.parametrize("shares", ["0.8,0.1", "0.8,0.1,0.2", "-0.1,1,0.1", "nan,0.5,0.5", "", "a,b,c", "1e0,0,0"])
def test_shares_that_are_not_three_parts_of_one_are_refused(shares: str) -> None:
    with pytest.raises(ValueError, match=r"split is .*: must be three shares that sum to 1: train, validate, test"):
        config(split=shares)


def test_two_ways_to_split_are_refused() -> None:
    with pytest.raises(ValueError, match=r"splits is s.csv: must be left out if --split is given"):
        config(split="0.8,0.1,0.1", splits="s.csv")


def test_a_hash_that_leaves_a_split_empty_is_one_line() -> None:
    with pytest.raises(UserError, match="none of 400 cases is in validate: give --split other shares or --split-seed"):
        assign_splits(config(split="1,0,0"), SCANS, None)


def test_spellings_of_a_name_that_mean_the_same() -> None:
    assert {key_of(name) for name in ("3", "003", "OAS1_0003", "OAS1_0003_MR1", "sub-03", "IXI003")} == {"3"}
    assert key_of("OAS1_0003_MR2") == "OAS1_0003_MR2"
    assert key_of("sub-A03") == "A03"
    assert key_of("000") == "0"


def test_the_table_may_lie_in_the_source_and_another_one_is_another_data_set(place: str) -> None:
    for case in ("001", "002"):
        storage.write_bytes(f"{place}/train/case_{case}_slice_0.nii.png", b"not read yet")
    storage.write_bytes(f"{place}/splits.csv", b"case,split\n1,train\n2,val\n")
    flags = PackConfig(place, f"{place}-out", splits=f"{place}/splits.csv")
    first = survey(flags)
    assert {name: [case.case for case in cases] for name, cases in first.split_cases().items()} == {
        "train": ["001"],
        "validate": ["002"],
    }
    assert not first.unused
    storage.write_bytes(f"{place}/splits.csv", b"case,split\n2,train\n1,val\n")
    assert survey(flags).fingerprint != first.fingerprint
