"""Covariates: columns of a table about the scanned persons, joined to cases."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from oasisgen import storage
from oasisgen.config.columns import covariate_name
from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Case
from oasisgen.data.covariates import join_covariates
from oasisgen.data.description import Covariate
from oasisgen.data.feed import store
from oasisgen.data.pack import pack
from oasisgen.data.slices import open_data_set, read_slices
from oasisgen.data.sources import survey
from oasisgen.data.text_tables import read_text_table

SCANS = [
    Case(case=f"sub-{number:02d}_ses-{session}", subject=f"sub-{number:02d}", split="train")
    for number in (1, 2, 3)
    for session in ("a", "b")
]


def join(folder: Path, text: str, columns: str | None = None, cases: list[Case] = SCANS) -> tuple[list, tuple]:
    """The values of each case, and what is said of the columns."""
    (folder / "t.csv").write_text(text)
    config = PackConfig("raw", "out", columns=columns)
    joined, covariates = join_covariates(config, cases, read_text_table(str(folder / "t.csv"), "--table"))
    return [case.covariates for case in joined], covariates


def test_columns_are_typed_and_what_is_missing_is_counted(tmp_path: Path) -> None:
    values, covariates = join(
        tmp_path,
        "participant_id\tAge\tgender\tCDR\tGroup\n"
        "sub-01\t71\tF\tn/a\tcontrol\n"
        "sub-02\t68.5\tN/A\tNaN\tcontrol\n"
        "sub-9\t1\tM\t\tother\n",
        "age,sex,CDR,Group",
    )
    assert values[0] == values[1] == {"age": 71.0, "sex": "F", "CDR": None, "Group": "control"}
    assert values[2] == {"age": 68.5, "sex": None, "CDR": None, "Group": "control"}
    assert values[4] == {"age": None, "sex": None, "CDR": None, "Group": None}
    assert covariates == (
        Covariate("age", "number", 2, 68.5, 71.0),
        Covariate("sex", "text", 4, values={"F": 2}),
        Covariate("CDR", "text", 6, values={}),
        Covariate("Group", "text", 2, values={"control": 4}),
    )


def test_a_row_of_the_case_is_preferred_to_one_of_its_subject(tmp_path: Path) -> None:
    values, _ = join(tmp_path, "id,age\nsub-01,70\nsub-01_ses-b,72\nsub-02_ses-a,60\n")
    assert [row["age"] for row in values] == [70, 72, 60, None, None, None]


def test_subjects_without_a_row_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    join(tmp_path, "id,age\n1,70\n")
    assert "2 of 3 subjects have no row in" in (said := capsys.readouterr().out)
    assert said.rstrip().endswith("t.csv: sub-02, sub-03")


def test_numbers_that_only_python_or_nobody_reads_as_numbers_are_texts(tmp_path: Path) -> None:
    _, covariates = join(tmp_path, "id,a,b,c,d\n1,1_000,inf,1e999,-1.5e-3\n2,2,3,4,.5\n", "a,b,c,d")
    assert [of.kind for of in covariates] == ["text", "text", "text", "number"]


def test_many_different_texts_are_not_counted_one_by_one(tmp_path: Path) -> None:
    cases = [Case(case=str(number), subject=str(number), split="train") for number in range(101)]
    text = "id,note\n" + "".join(f"{number},note {number}\n" for number in range(101))
    _, (note,) = join(tmp_path, text, "note", cases)
    assert note == Covariate("note", "text", 0)
    _, (note,) = join(tmp_path, text, "note", cases[:100])
    assert note.values
    assert len(note.values) == 100


@pytest.mark.parametrize(
    ("column", "name"),
    [("M/F", "sex"), ("Sex", "sex"), ("nWBV", "nWBV"), ("Age (years)", "Age_years"), ("../x", "x"), ("é", "")],
)
def test_the_name_of_a_covariate_is_a_plain_word(column: str, name: str) -> None:
    assert covariate_name(column) == name


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("age,Case", "columns names Case, which every data set has: rename that column in the table"),
        ("image", "columns names image, which every data set has"),
        ("age,,sex", "columns names '': must be names of columns with letters or digits, like age,sex"),
        ("sex,M/F", "columns names M/F twice: remove one"),
    ],
)
def test_columns_that_a_data_set_cannot_have_are_refused(columns: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackConfig("raw", "out", columns=columns)


def bids(place: str, table: str) -> PackConfig:
    """A source with two cases and a participants.tsv."""
    for split, case in (("train", "001"), ("validate", "002")):
        storage.write_bytes(f"{place}/{split}/case_{case}_slice_0.nii.png", b"not read by a survey")
    storage.write_bytes(f"{place}/participants.tsv", table.encode())
    return PackConfig(place, f"{place}-out")


def test_the_participants_of_a_bids_source_are_used_and_said(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = bids(place, "participant_id\tage\nsub-001\t70\nsub-002\t80\n")
    found = survey(config)
    assert [case.covariates for case in found.cases] == [{"age": 70.0}, {"age": 80.0}]
    assert found.covariates == (Covariate("age", "number", 0, 70.0, 80.0),)
    assert not found.unused
    assert f"age come from {place}/participants.tsv" in capsys.readouterr().out
    storage.write_bytes(f"{place}/participants.tsv", b"participant_id\tage\nsub-001\t70\nsub-002\t81\n")
    assert survey(config).fingerprint != found.fingerprint


def test_participants_that_cannot_be_used_are_listed_and_lose_nothing(tmp_path: Path) -> None:
    found = survey(bids(str(tmp_path / "raw"), "participant_id\tage\nsub-001\t70\nsub-001\t80\n"))
    assert len(found.cases) == 2
    assert not found.covariates
    (unused,) = found.unused
    assert unused.examples == ("participants.tsv",)
    assert "lines 2 and 3 are both of sub-001" in unused.reason


def test_the_table_of_oasis_fits_the_known_slices() -> None:
    oasis = os.environ.get("OASISGEN_OASIS_DIR")
    if not oasis:
        pytest.skip("needs OASISGEN_OASIS_DIR")
    found = survey(PackConfig(oasis, "out", table=f"{oasis}/oasis_cross-sectional.csv", columns="age,M/F,CDR,nWBV"))
    assert len(found.cases) == 337
    age, sex, cdr, nwbv = found.covariates
    assert (age.name, age.kind, age.missing) == ("age", "number", 0)
    assert (sex.name, sex.kind, sex.missing) == ("sex", "text", 0)
    assert sum((sex.values or {}).values()) == 337
    assert (cdr.name, cdr.kind) == ("CDR", "number")
    assert (nwbv.name, nwbv.kind, nwbv.missing) == ("nWBV", "number", 0)
    third = next(case for case in found.cases if case.case == "003")
    assert third.covariates == {"age": 73.0, "sex": "F", "CDR": 0.5, "nWBV": 0.708}


def test_covariates_are_columns_of_the_data_set_and_training_reads_it_as_before(
    connected: str, raw: Path, tmp_path: Path
) -> None:
    source = tmp_path / "raw"
    shutil.copytree(raw, source)
    (source / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-1\t70\tF\nsub-002\tn/a\tM\nsub-004\t65\tF\n"
    )
    described = pack(PackConfig(str(source), str(tmp_path / "d")))
    assert described
    data = open_data_set(str(tmp_path / "d"))
    assert data.description == described
    assert described.covariates == (
        Covariate("age", "number", 3, 65.0, 70.0),
        Covariate("sex", "text", 2, values={"F": 2, "M": 1}),
    )
    table = pq.read_table(tmp_path / "d" / "train" / "part-00000.parquet")
    assert Counter(zip(*(table[name].to_pylist() for name in ("case", "age", "sex")), strict=True)) == {
        ("001", 70.0, "F"): 32,
        ("002", None, "M"): 32,
        ("003", None, None): 32,
    }
    plain = pack(PackConfig(str(raw), str(tmp_path / "plain")))
    assert plain
    feeds = [store(read_slices(open_data_set(str(tmp_path / name)), "train")).load() for name in ("d", "plain")]
    with_them, without = (feed.rows(np.arange(96), "image") for feed in feeds)
    assert np.array_equal(with_them, without)
    assert [sorted(feed.blocks[0]) for feed in feeds] == [["case", "image", "level", "subject"]] * 2
    assert pack(PackConfig(str(source), str(tmp_path / "d"))) == described
