"""Bad input to packing: each ends in one line that names the thing and the fix.

Kinds that only reading finds out have tables of their own: images (test_images.py), voxels (test_volumes.py) and
archives (test_tree.py).
"""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from oasisgen.config.pack import PackConfig
from oasisgen.data.sources import survey
from oasisgen.errors import UserError
from tests.conftest import one_line, png


class Bad(NamedTuple):
    """A bad input: how to make it in a folder with a good source, the flags to pack it with, and what is said."""

    make: Callable[[Path], object]
    flags: dict[str, str]  # `{}` is the folder
    said: str


def write(name: str, data: bytes | str) -> Callable[[Path], object]:
    """A function that writes a file."""
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def nothing(folder: Path) -> None:
    """The flags alone are bad."""


def files(**contents: bytes) -> Callable[[Path], object]:
    """A function that writes the files of a folder `source`; `_` in a name is a dot."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            path = folder / "source" / name.replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return make


SOURCE = {"source": "{}/source"}
TABLE = {"table": "{}/t.csv"}
SPLITS = {"splits": "{}/t.csv"}
SLICES = "train/case_001_slice_0.nii.png", "validate/case_002_slice_0.nii.png"
LARGE = png(np.zeros((600, 600), np.uint8))

BAD = {
    "no table": Bad(nothing, SPLITS, r"no file at .*t\.csv: give --splits the address of a CSV or TSV file"),
    "a table below a file": Bad(
        write("t.csv", ""), {"splits": "{}/t.csv/x"}, r"no file at .*t\.csv/x: give --splits the address of a CSV"
    ),
    "an empty table": Bad(write("t.csv", " \n\n"), SPLITS, r"t\.csv is empty: it must have a header and a row"),
    "a table without rows": Bad(write("t.csv", "subject,split\n"), SPLITS, r"has a header, but no rows: add a row"),
    "a table in Latin-1": Bad(
        write("t.csv", "subject,split\n1,train\né,val\n".encode("latin-1")),
        SPLITS,
        r"t\.csv, line 3: not UTF-8 text: save the table as CSV with encoding UTF-8",
    ),
    "a table in UTF-16": Bad(
        write("t.csv", "subject,split\n1,train\n".encode("utf-16")), SPLITS, r"not UTF-8 text: save the table as CSV"
    ),
    "a spreadsheet for a table": Bad(
        write("t.csv", b"PK\x03\x04\x14\0\x06\0\x08\0"), SPLITS, r"is not text: save the table as CSV"
    ),
    "uneven rows": Bad(
        write("t.csv", "subject,split\n1,train\n2\n"), SPLITS, r"line 3: 1 values, the header has 2: fix it"
    ),
    "a quote that is never closed": Bad(
        write("t.csv", 'subject,split\n1,"train\n2,val\n'), SPLITS, r"line 3: unexpected end of data: fix it"
    ),
    "a column twice": Bad(
        write("t.csv", "subject,Split,SPLIT\n1,train,val\n"), SPLITS, r"has 2 columns Split: rename or remove one"
    ),
    "a table that is too large": Bad(
        lambda folder: (folder / "t.csv").write_bytes(b"subject,split\n" + b"1,train\n" * 2_200_000),
        SPLITS,
        r"has more than 16777216 bytes: it must be a table with a row per subject",
    ),
    "a split of no case": Bad(
        write("t.csv", "subject,split\n1,train\n"),
        SPLITS,
        r"none of 1 cases is in validate: add subjects of that split",
    ),
    "a subject in two splits": Bad(
        write("t.csv", "subject,split\n1,train\n2,val\n01,val\n"),
        SPLITS,
        r"line 2 puts subject 001 in train, line 4 in val: give it one split",
    ),
    "no table of covariates": Bad(
        nothing, TABLE, r"no file at .*t\.csv: give --table the address of a CSV or TSV file"
    ),
    "a folder for a table": Bad(lambda folder: (folder / "t.csv").mkdir(), TABLE, r"t\.csv"),
    "a subject twice": Bad(
        write("t.csv", "ID,age\n1,70\n2,71\n001,70\n"), TABLE, r"t\.csv: lines 2 and 4 are both of 001: remove one"
    ),
    "a table of other subjects": Bad(
        write("t.csv", "ID,age\n9,70\n"), TABLE, r"no row of .*its line 2 names 9, the source has case 001"
    ),
    "a column that is not there": Bad(
        write("t.csv", "ID,age\n1,70\n"), TABLE | {"columns": "age,IQ"}, r"no column IQ: --columns may name ID, age"
    ),
    "a table without the usual columns": Bad(
        write("t.csv", "ID,IQ\n1,70\n"),
        TABLE,
        r"has no column age, sex, CDR: name others with --columns, out of ID, IQ",
    ),
    "a table without subjects": Bad(
        write("t.csv", "name,age\n1,70\n"), TABLE, r"has no column that names the subject: call it one of case, "
    ),
    "a pattern that finds nothing": Bad(
        nothing,
        {"pattern": r"z(?P<level>\d+)_(?P<case>\w+)"},
        r"no slices in .*raw: train/case_001_slice_0.nii.png: --pattern does not find its case and level",
    ),
    "two subjects with a case of one name": Bad(
        files(a_run1_1_png=b"x", b_run1_2_png=b"x"),
        SOURCE | {"pattern": r"(?P<subject>[ab])\.(?P<case>run1)\.(?P<level>\d)"},
        r"subjects a and b both have a case run1: give --pattern a group session, or a group case that tells them",
    ),
    "slices larger than models take": Bad(
        lambda folder: [(folder / "raw" / name).write_bytes(LARGE) for name in SLICES],
        {},
        r"most slices in .*raw have 600 x 600 pixels, and models take at most 512 x 512: give --size 512x512",
    ),
    "classes of no label map": Bad(
        nothing,
        {"label_classes": "0=background,1=lesion"},
        r"raw has no label maps for --label-classes: leave it out, or add them",
    ),
    "no source": Bad(nothing, SOURCE, r"no folder at .*source: give --source the folder .* or an archive"),
    "an empty folder": Bad(lambda folder: (folder / "source").mkdir(), SOURCE, r"no slices in .*source: expected "),
    "an empty archive": Bad(files(a_zip=b""), {"source": "{}/source/a.zip"}, r"a\.zip .*: copy it again"),
    "half an archive": Bad(
        files(a_tar_gz=gzip.compress(bytes(range(256)) * 99)[:200]),
        {"source": "{}/source/a.tar.gz"},
        r"a\.tar\.gz .*: copy it again",
    ),
    "a header without its voxels": Bad(
        files(a_hdr=bytes(348)), SOURCE, r"no volumes in .*source: a\.hdr: no a\.img beside it: copy both files"
    ),
    "voxels without their header": Bad(
        files(a_img=bytes(99)), SOURCE, r"no volumes in .*source: a\.img: no a\.hdr beside it: copy both files"
    ),
    "two volumes for one case": Bad(
        files(a_nii=b"", a_nii_gz=b""), SOURCE, r"2 scans of case a: keep one, or pack from a folder that holds"
    ),
    "a pattern without groups": Bad(nothing, {"pattern": r"\d+"}, r"pattern is .*: must be one with named groups"),
    "a pattern that never ends": Bad(
        nothing,
        {"pattern": r"(?P<case>([\w./]+)+)-(?P<level>\d)"},
        r"--pattern .* takes too long on train/case_001_slice_0.nii.png: give one without a repetition in a repetition",
    ),
    "a pattern that is no expression": Bad(nothing, {"pattern": "("}, r"pattern is \(: no regular expression"),
    "shares without a case": Bad(nothing, {"split": "1,0,0"}, r"none of 2 cases is in "),
    "a flag of another layout": Bad(nothing, {"axis": "coronal"}, r"layout slices, which does not use --axis: leave"),
    "columns of no table": Bad(nothing, {"columns": "age"}, r"--columns age names columns of no table: give one with"),
}


@pytest.mark.parametrize(
    "classes",
    [
        "0=background,17=hippocampus,53=hippocampus",
        "0=background,17= ",
        "0=background,1=grey matter,2=grey_matter",
        "0=background,1=loss",
        "0=background,1=a\nb",
    ],
)
def test_classes_that_reports_could_not_tell_apart_are_refused(classes: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)^label-classes is .*: must be different printable names, none of them "):
        PackConfig("s", "o", label_classes=classes)
    assert PackConfig("s", "o", label_classes="0=background, 1=bone loss,2=$x").classes[1] == "bone loss"


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(bad: Bad, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for split, case in (("train", "001"), ("validate", "002")):
        (raw / split).mkdir(parents=True)
        (raw / split / f"case_{case}_slice_0.nii.png").write_bytes(b"not read by a survey")
    bad.make(tmp_path)
    flags = {name: value.format(tmp_path) for name, value in bad.flags.items()}
    config = {"source": str(raw), "out": str(tmp_path / "out")} | flags
    with pytest.raises((UserError, ValueError), match=bad.said) as error:
        survey(PackConfig(**config))  # type: ignore[arg-type]
    assert one_line(str(error.value))
    assert not (tmp_path / "out").exists()
