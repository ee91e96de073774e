"""DICOM series are found in folders and archives, and give the slices of the same volume in NIfTI."""

import json
import shutil
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import generate_uid

from oasisgen import storage
from oasisgen.config.pack import PackConfig
from oasisgen.data import dicom
from oasisgen.data.cases import Found, Slice
from oasisgen.data.parts import plan_parts, read_cases
from oasisgen.data.sources import survey
from oasisgen.data.tree import list_tree, read_file
from oasisgen.errors import UserError
from tests.data.dicom_files import BIRTH, PERSON, raw_data, series, write
from tests.data.test_volumes import AFFINE, FLAGS, head

SMALL = np.random.default_rng(0).integers(0, 1000, (8, 8, 10)).astype(np.int16)


def packed(source: Path) -> dict[str, np.ndarray]:
    """The slices of each case that pack would write, (L, H, W)."""
    splits = source.parent / "splits.csv"
    splits.write_text("subject,split\na,train\nb,validate\n")
    config = PackConfig(str(source), "out", splits=str(splits), **FLAGS)  # type: ignore[arg-type]
    found = survey(config)
    assert found.layout == "volumes"
    results = [each for plan in plan_parts(found, config, None) for each in read_cases(plan)]
    assert all(isinstance(each, Slice) for _, each in results)
    cases = dict.fromkeys(case.case for case, _ in results)
    return {
        name: np.array([of.image for case, of in results if case.case == name and isinstance(of, Slice)])
        for name in cases
    }


def small(folder: Path, patient: str = "4711", shift: int = 0, count: int = 10, **tags: Any) -> None:
    """Write a small series of a patient."""
    affine = AFFINE.copy()
    affine[2, 3] += shift
    write(folder, series(SMALL[:, :, :count], affine, PatientID=patient, **tags))


def found_in(source: Path | str, pattern: str | None = None) -> Found:
    uri = str(source)
    return dicom.find_cases(PackConfig(uri, "out", pattern=pattern), list_tree(uri).files, partial(read_file, uri))


def subjects(source: Path) -> dict[str, str]:
    return {case.case: case.subject for case in found_in(source).cases}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], Path]:
    """The slices of two scans packed from NIfTI, and the folder of the same scans as series."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "nifti").mkdir()
    scans = {"a": head(), "b": np.roll(head(), 2, 2)}
    for (name, voxels), plane in zip(scans.items(), ("axial", "sagittal"), strict=True):
        nib.Nifti1Image(voxels, AFFINE).to_filename(folder / "nifti" / f"{name}.nii.gz")
        write(folder / "dicom" / name / "IMAGES", series(voxels, AFFINE, plane, PatientID=name))
    return packed(folder / "nifti"), folder / "dicom"


def test_series_give_the_very_slices_of_nifti(both: tuple[dict[str, np.ndarray], Path]) -> None:
    expected, folder = both
    given = packed(folder)
    assert sorted(given) == ["a", "b"]
    for case, slices in given.items():
        assert slices.std() > 10
        assert np.array_equal(slices, expected[case]), case


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_series_in_an_archive_give_them_too(
    kind: str, both: tuple[dict[str, np.ndarray], Path], tmp_path: Path
) -> None:
    expected, folder = both
    (tmp_path / "raw").mkdir()
    shutil.make_archive(str(tmp_path / "raw" / "scans"), kind, folder)
    given = packed(tmp_path / "raw")
    assert all(np.array_equal(given[case], expected[case]) for case in ("a", "b"))


def test_series_on_s3_are_read(s3: str, tmp_path: Path) -> None:
    small(tmp_path / "p")
    for file in (tmp_path / "p").iterdir():
        storage.write_bytes(f"{s3}/dicom/p/{file.name}", file.read_bytes())
    (case,) = found_in(f"{s3}/dicom").cases
    assert case.scan
    volume = dicom.read(case.scan.image, partial(read_file, f"{s3}/dicom"))
    assert np.array_equal(volume.voxels, SMALL)


def test_what_is_no_scan_is_counted_with_its_reason_and_nobody_is_named(tmp_path: Path) -> None:
    study: dict[str, Any] = {"StudyInstanceUID": generate_uid()}
    small(tmp_path / "a" / "t1", "1", **study)
    small(tmp_path / "a" / "mpr", "1", ImageType=["DERIVED", "SECONDARY", "MPR"], **study)
    small(tmp_path / "a" / "t2", "1", SeriesDescription="t2_tse_tra", **study)
    small(tmp_path / "a" / "scout", "1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **study)
    small(tmp_path / "a" / "few", "1", count=3, **study)
    small(tmp_path / "a" / "ct", "1", Modality="CT", **study)
    small(tmp_path / "a" / "shot", "1", SamplesPerPixel=3, PhotometricInterpretation="RGB", **study)
    small(tmp_path / "a" / "multi", "1", NumberOfFrames=2, **study)
    small(tmp_path / "a" / "report", "1", Rows=None, ConceptNameCodeSequence=[], **study)
    small(tmp_path / "a" / "flat", "1", ImagePositionPatient=None, **study)
    small(tmp_path / "b", "2")
    write(tmp_path / "b" / "raw", [raw_data()])
    write(tmp_path / "b" / "raw", [raw_data()], "RAW_{}.dcm")
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "b" / "IM_0000").read_bytes())
    (tmp_path / "b" / "notes.txt").write_text("x")
    (tmp_path / "b" / "more").write_text("x" * 200)
    (tmp_path / "b" / "no.dcm").write_text("x" * 200)
    (tmp_path / "b" / "cut.dcm").write_bytes((tmp_path / "b" / "IM_0000").read_bytes()[:700])
    found = survey(PackConfig(str(tmp_path), "out"))
    assert {case.case: case.subject for case in found.cases} == {"a": "a", "b": "b"}
    assert {of.reason: of.count for of in found.unused} == {
        "not of the T1-weighted scan of its study": 20,
        "a localizer": 10,
        "of a series of fewer than 10 slices": 3,
        "a DICOM image of another kind than MR": 10,
        "a DICOM image in colours": 10,
        "a DICOM object that is no image": 12,
        "a DICOM image without position or orientation": 10,
        "not a volume": 2,
    }
    rejected = {each.file: each.reason for each in found.rejected}
    assert rejected.pop("b/no.dcm") == "no DICOM file, against its name: copy it again, or remove it"
    assert rejected.pop("b/cut.dcm") == "truncated or damaged: copy it again"
    assert set(rejected.values()) == {"a multi-frame DICOM file, which is not read: convert it to NIfTI by dcm2niix"}
    assert len(rejected) == 10
    written = json.dumps(asdict(found))
    assert not any(secret in written for secret in (PERSON, BIRTH, "20260102", "t1_mprage"))


def test_folders_name_subjects_where_they_agree_with_patient_id(tmp_path: Path) -> None:
    adni = tmp_path / "adni"
    for subject, date, image in (
        ("002_S_0295", "2006", "I1"),
        ("002_S_0295", "2007", "I2"),
        ("002_S_0413", "2006", "I3"),
    ):
        small(adni / "ADNI" / subject / "MPRAGE" / date / image, subject, StudyDate=f"{date}0101")
    assert subjects(adni) == {
        "002_S_0295_1": "002_S_0295",
        "002_S_0295_2": "002_S_0295",
        "002_S_0413": "002_S_0413",
    }
    visits = tmp_path / "visits"  # the outer folders hold the same persons
    for visit in ("one", "two"):
        for subject in ("p1", "p2"):
            small(visits / visit / subject, f"id {subject}")
    assert sorted(subjects(visits)) == ["p1_1", "p1_2", "p2_1", "p2_2"]


def test_a_numbered_case_does_not_take_the_name_of_another_subject(tmp_path: Path) -> None:
    for name, patient in (("P1/a", "1"), ("P1/b", "1"), ("P1_1/a", "2"), ("P2/a", "3")):
        small(tmp_path / name, patient)
    assert subjects(tmp_path) == {"P1_2": "P1", "P1_3": "P1", "P1_1": "P1_1", "P2": "P2"}


def test_a_pattern_names_cases_subjects_and_splits(tmp_path: Path) -> None:
    for name in ("train/p1-a", "train/p1-b", "val/p2-a", "other/x"):
        small(tmp_path / name, "ANON")
    found = found_in(tmp_path, r"(?P<split>train|val)/(?P<subject>p\d)-(?P<session>\w)")
    assert [(case.case, case.subject, case.split) for case in found.cases] == [
        ("p1_a", "p1", "train"),
        ("p1_b", "p1", "train"),
        ("p2_a", "p2", "validate"),
    ]
    assert [each.file for each in found.rejected] == ["other/x/IM_0000"]


def test_a_digest_of_patient_id_names_subjects_where_folders_do_not(tmp_path: Path) -> None:
    for number, patient in enumerate(("Doe 1950", "Doe 1950", "Roe 1960")):
        slices = series(SMALL, AFFINE, PatientID=patient)
        write(tmp_path, slices, f"x{number}_{{:03d}}")
    of = subjects(tmp_path)
    assert len(of) == 3
    assert len(set(of.values())) == 2
    assert all(subject.startswith("patient-") and "oe" not in subject for subject in of.values())


@pytest.mark.parametrize("patient", ["", "ANON"])
def test_one_patient_id_for_all_leaves_it_to_the_folders_which_do_not_part_a_study(
    patient: str, tmp_path: Path
) -> None:
    study: dict[str, Any] = {"StudyInstanceUID": generate_uid()}
    small(tmp_path / "hospital" / "1" / "t1", patient, **study)
    small(tmp_path / "hospital" / "1" / "mprage", patient, **study)
    small(tmp_path / "hospital" / "2" / "t1", patient)
    assert subjects(tmp_path) == {"1_1": "1", "1_2": "1", "2": "2"}
    shutil.rmtree(tmp_path / "hospital" / "2")
    assert len(set(subjects(tmp_path).values())) == 1


def test_a_study_without_a_t1_must_have_one_series(tmp_path: Path) -> None:
    study: dict[str, Any] = {"StudyInstanceUID": generate_uid()}
    small(tmp_path / "t2", SeriesDescription="t2", **study)
    assert len(found_in(tmp_path).cases) == 1
    small(tmp_path / "flair", SeriesDescription="flair", **study)
    with pytest.raises(UserError, match="2 series in its study, and none is named T1 or MPRAGE: keep one"):
        found_in(tmp_path)


def test_tags_behind_a_long_private_one_are_found(tmp_path: Path) -> None:
    slices = series(SMALL, AFFINE)
    for of in slices:
        of.add_new(0x00190010, "LO", "PRIVATE")
        of.add_new(0x00191001, "OB", bytes(100_000))
    write(tmp_path, slices, "1.2.840.{}")
    (case,) = found_in(tmp_path).cases
    assert case.scan
    assert len(case.scan.image.files) == 10


def test_a_file_whose_kind_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    small(tmp_path / "p")
    write(tmp_path / "p", [raw_data()], "RAW_{}.dcm")
    content = (tmp_path / "p" / "RAW_0.dcm").read_bytes()
    uid = b"\x02\x00\x02\x00UI"  # group, element and value representation of MediaStorageSOPClassUID
    for name, kind in (("unknown", b"U\x7f"), ("a number", b"US")):
        (tmp_path / "p" / f"{name}.dcm").write_bytes(content.replace(uid, uid[:4] + kind))
    rejected = {each.file: each.reason for each in found_in(tmp_path).rejected}
    assert rejected["p/unknown.dcm"] == rejected["p/a number.dcm"] == "truncated or damaged: copy it again"


def test_without_pydicom_one_line_names_the_extra_and_dcm2niix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"the extra `dicom`, on every node, .* dcm2niix") as error:
        survey(PackConfig(str(tmp_path), "out"))
    assert "\n" not in str(error.value)
