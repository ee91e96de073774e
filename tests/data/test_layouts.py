"""Which layout a source has, and which flags belong to which layout."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from oasisgen.config.pack import FLAGS_OF, PackConfig
from oasisgen.data.sources import survey
from oasisgen.errors import UserError
from tests.conftest import one_line

FILES = {  # a source of each layout; a survey stops before it reads these
    "slices": "train/case_001_slice_0.png",
    "oasis1": "disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc.hdr",
    "volumes": "sub-01/anat/sub-01_T1w.nii.gz",
}
GIVEN = {  # a value other than the default for each flag that not every layout uses
    "pattern": r"(?P<case>\d+)",
    "size": "64x64",
    "fit": "crop",
    "label_classes": "0=background,1=lesion",
    "axis": "coronal",
    "levels": 8,
    "from_mm": 80.0,
    "to_mm": 20.0,
    "mm": 2.0,
    "window": "1,99",
    "window_per": "slice",
}
COMMON = {
    "source",
    "out",
    "layout",
    "splits",
    "split",
    "split_seed",
    "table",
    "columns",
    "preview",
    "strict",
    "dry_run",
}


def source_of(folder: Path, *layouts: str) -> str:
    """A folder with the files of some layouts."""
    for layout in layouts:
        file = folder / "raw" / FILES[layout]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not read by a survey")
    return str(folder / "raw")


def test_each_flag_belongs_to_some_layout_or_to_all() -> None:
    assert {field.name for field in fields(PackConfig)} == COMMON | GIVEN.keys()
    assert {name for names in FLAGS_OF.values() for name in names} == GIVEN.keys()


@pytest.mark.parametrize("layout", FLAGS_OF)
@pytest.mark.parametrize("name", GIVEN)
def test_a_flag_that_a_layout_does_not_use_is_refused(layout: str, name: str, tmp_path: Path) -> None:
    flags: dict[str, Any] = {name: GIVEN[name]}
    if name == "pattern" and layout == "slices":
        flags[name] += r"_(?P<level>\d+)"
    if name in FLAGS_OF[layout]:
        assert PackConfig("s", "o", layout=layout, **flags).misfit(layout) == ""  # type: ignore[arg-type]
        return
    flag = f"--{name.removesuffix('_mm').replace('_', '-')}"
    with pytest.raises(ValueError, match=f"layout is {layout}, which does not use {flag}: leave it out"):
        PackConfig("s", "o", layout=layout, **flags)  # type: ignore[arg-type]
    source = source_of(tmp_path, layout)
    with pytest.raises(
        UserError, match=f"raw is read as layout {layout}, which does not use {flag}: leave it"
    ) as error:
        survey(PackConfig(source, "out", **flags))
    assert one_line(str(error.value))


def test_several_flags_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="does not use --axis and --mm: leave them out"):
        PackConfig("s", "o", layout="slices", axis="coronal", mm=2.0)


@pytest.mark.parametrize(
    ("layout", "pattern", "said"),
    [
        ("slices", r"(?P<case>\d+)", "finds no group level in --pattern .*: give one with named groups, like"),
        (
            "volumes",
            r"(?P<case>\d+)_(?P<level>\d+)",
            "has no use for the group level of --pattern .*: give one without",
        ),
    ],
)
def test_a_pattern_has_the_groups_of_its_layout(layout: str, pattern: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        PackConfig("s", "o", layout=layout, pattern=pattern)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        survey(PackConfig(source_of(tmp_path, layout), "out", pattern=pattern))
