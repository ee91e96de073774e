"""Volumes of any format: whatever the order, spacing and angle of their voxels, the slices are the same."""

import gzip
import io
import os
from collections import Counter
from functools import partial
from pathlib import Path

import nibabel as nib
import nilearn.datasets
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from oasisgen.config.pack import PackConfig
from oasisgen.data import volumes
from oasisgen.data.cases import Found, Slice, SourceFile
from oasisgen.data.description import RejectedFile
from oasisgen.data.parts import plan_parts, read_cases
from oasisgen.data.sources import survey
from oasisgen.data.tree import list_tree, read_file
from oasisgen.data.volume_reader import read_volume
from oasisgen.errors import UserError

FLAGS = {"size": "64x96", "mm": 2.0, "levels": 4}
AFFINE = np.array([[2.0, 0, 0, -60], [0, 2, 0, -80], [0, 0, 2, -50], [0, 0, 0, 1]])
SHAPE = 60, 80, 62


def head() -> np.ndarray:
    """An ellipsoid with texture, brighter at the left than at the right and at the back than in front."""
    x, y, z = np.indices(SHAPE, np.float32)
    inside = ((x - 30) / 26) ** 2 + ((y - 40) / 36) ** 2 + ((z - 30) / 28) ** 2 < 1
    texture = gaussian_filter(np.random.default_rng(0).normal(0, 1, SHAPE), 2) * 900
    return np.where(inside, 400 + texture - 3 * x - y, 0).round().clip(0).astype(np.int16)


def save(file: Path, voxels: np.ndarray, affine: np.ndarray | None = AFFINE, kind: type = nib.Nifti1Image) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    kind(voxels, affine).to_filename(file)
    return file


def read(source: Path, **flags: str | float) -> tuple[Found, dict[str, list[Slice]], list[RejectedFile]]:
    """What is found, the slices of all cases, and what is rejected."""
    config = PackConfig(str(source), "out", **(FLAGS | flags))  # type: ignore[arg-type]
    of_source = partial(read_file, str(source))
    found = volumes.find_cases(config, list_tree(str(source)).files, of_source)
    slices: dict[str, list[Slice]] = {}
    rejected = [*found.rejected]
    for case in found.cases:
        assert case.scan
        for each in volumes.read_scan(case.scan, config, found.label_classes, of_source):
            if isinstance(each, Slice):
                slices.setdefault(case.case, []).append(each)
            else:
                rejected.append(each)
    return found, slices, rejected


def images(slices: dict[str, list[Slice]], case: str) -> np.ndarray:
    return np.array([each.image for each in slices[case]])


def test_every_order_of_voxels_number_type_and_format_gives_the_same_slices(tmp_path: Path) -> None:
    voxels = head()
    save(tmp_path / "ras.nii.gz", voxels)
    lps = AFFINE @ nib.orientations.inv_ornt_aff([[0, -1], [1, -1], [2, 1]], SHAPE)
    save(tmp_path / "lps.nii", voxels[::-1, ::-1], lps)
    save(tmp_path / "sagittal.nii.gz", voxels.transpose(1, 2, 0), AFFINE[:, [1, 2, 0, 3]])
    save(tmp_path / "float.nii.gz", voxels.astype(np.float64))
    save(tmp_path / "frame.nii.gz", voxels[..., None])
    save(tmp_path / "two.nii.gz", voxels, kind=nib.Nifti2Image)
    save(tmp_path / "pair.img", voxels, kind=nib.Nifti1Pair)
    save(tmp_path / "surfer.mgz", voxels, kind=nib.MGHImage)
    big = nib.Nifti1Image(voxels, AFFINE, nib.Nifti1Header(endianness=">"))
    big.to_filename(tmp_path / "big.nii")
    scaled = nib.Nifti1Image(voxels, AFFINE)
    scaled.header.set_slope_inter(0.5, 0)
    scaled.to_filename(tmp_path / "scaled.nii.gz")
    _, slices, rejected = read(tmp_path)
    assert rejected == []
    assert len(slices) == 10
    for case in slices:
        assert np.array_equal(images(slices, case), images(slices, "ras")), case
    # Level 0 lies 82 mm below the top, a voxel is a pixel, rows run from left to right, columns from back to front.
    top = int(np.flatnonzero((voxels > 0).sum((0, 1)) * 4 > 100)[-1])
    shown = images(slices, "ras")[0]
    rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    plane = voxels[:, :, top - 41]
    x, y = (np.flatnonzero(plane.any(axis)) for axis in (1, 0))
    assert (len(rows), len(columns)) == (len(x), len(y))
    low, high = np.percentile(voxels[voxels != 0], (0, 99.5))
    grey = np.rint(np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) * 255)
    cropped = shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert np.abs(cropped - grey[x[0] : x[-1] + 1, y[0] : y[-1] + 1]).max() <= 1


def test_oblique_and_anisotropic_volumes_give_nearly_the_same_slices(tmp_path: Path) -> None:
    voxels = head()
    save(tmp_path / "plain.nii.gz", voxels)
    angle = np.deg2rad(12)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    for name, steps, count in (("oblique", (2, 2, 2), (64, 90, 90)), ("thick", (1, 1, 3), (128, 180, 60))):
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag(steps)
        affine[:3, 3] = turn @ np.array([-64.0, -90, -88]) + [0, 0, 10]
        there = np.linalg.inv(AFFINE) @ affine
        points = np.tensordot(there[:3, :3], np.indices(count), 1) + there[:3, 3, None, None, None]
        save(tmp_path / f"{name}.nii.gz", map_coordinates(voxels.astype(np.float32), points, order=1), affine)
    _, slices, _ = read(tmp_path)
    plain = images(slices, "plain").astype(float)
    for name in ("oblique", "thick"):
        other = images(slices, name).astype(float)
        best = max(np.corrcoef(np.roll(other, shift, 2).ravel(), plain.ravel())[0, 1] for shift in (-1, 0, 1))
        assert best > 0.95, name


@pytest.mark.parametrize("axis", ["coronal", "sagittal"])
def test_coronal_and_sagittal_slices_have_the_top_above(axis: str, tmp_path: Path) -> None:
    x, y, z = np.indices(SHAPE)
    inside = ((x - 30) / 26) ** 2 + ((y - 40) / 36) ** 2 + ((z - 30) / 28) ** 2 < 1
    save(tmp_path / "s.nii.gz", np.where(inside, 10 + z * 4 + (x if axis == "coronal" else y), 0).astype(np.int16))
    _, slices, _ = read(tmp_path, axis=axis, size="96x96")
    shown = images(slices, "s")[2].astype(float)
    rows, columns = np.nonzero(shown > 0)
    down = np.polyfit(rows, shown[rows, columns], 1)[0]
    right = np.polyfit(columns, shown[rows, columns], 1)[0]
    assert down < -1  # brighter above: there is the top
    assert right > 0.2  # and to the right: there is the right side, or the front


def test_bids_gives_subjects_sessions_and_label_maps_and_leaves_out_derivatives(tmp_path: Path) -> None:
    voxels = head()
    labels = (voxels > 0) * np.where(np.indices(SHAPE)[0] < 30, 1, 2).astype(np.uint8)
    for name, folder in (
        ("sub-01_ses-a", "sub-01/ses-a/anat"),
        ("sub-01_ses-b", "sub-01/ses-b/anat"),
        ("sub-2", "sub-2/anat"),
    ):
        save(tmp_path / folder / f"{name}_T1w.nii.gz", voxels)
    save(tmp_path / "sub-2/anat/sub-2_T2w.nii.gz", voxels)
    save(tmp_path / "sub-2/func/sub-2_bold.nii.gz", voxels)
    save(tmp_path / "derivatives/x/sub-2/anat/sub-2_desc-preproc_T1w.nii.gz", voxels)
    save(tmp_path / "derivatives/x/sub-2/anat/sub-2_space-MNI152_dseg.nii.gz", labels)
    save(tmp_path / "derivatives/x/sub-01/anat/sub-01_ses-a_dseg.nii.gz", labels[::-1, ::2, ::2],
         AFFINE @ nib.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], SHAPE) @ np.diag([1, 2, 2, 1]))  # fmt: skip
    found, slices, rejected = read(tmp_path)
    assert rejected == []
    assert {case.case: case.subject for case in found.cases} == {
        "sub-01_ses-a": "sub-01",
        "sub-01_ses-b": "sub-01",
        "sub-2": "sub-2",
    }
    assert [of.name for of in found.label_classes] == ["background", "class 1", "class 2"]
    assert Counter(of.reason for of in found.unused) == {
        "a derivative, not a scan": 1,
        "a label map in another space than its scan": 1,
        "not the T1w scan of a BIDS subject": 2,
    }
    assert all(each.labels is None for each in slices["sub-2"])
    for each in slices["sub-01_ses-a"]:
        assert each.labels is not None
        assert each.labels.dtype == np.uint8
        inside = each.image > 0
        assert (each.labels[:30] != 2).all()
        assert (each.labels[34:] != 1).all()
        assert np.mean((each.labels > 0) == inside) > 0.97


def test_a_survey_recognises_volumes_and_its_parts_read_them(tmp_path: Path) -> None:
    voxels = head()
    for name in ("a", "b"):
        save(tmp_path / "raw" / f"{name}.nii.gz", voxels)
    (tmp_path / "t.csv").write_text("subject,split\na,train\nb,validate\n")
    config = PackConfig(str(tmp_path / "raw"), "out", splits=str(tmp_path / "t.csv"), size="64x96", mm=2.0, levels=4)
    found = survey(config)
    assert (found.layout, found.image_size) == ("volumes", (64, 96))
    plans = plan_parts(found, config, None)
    assert [plan.split for plan in plans] == ["train", "validate"]
    for plan in plans:
        slices = [each for _, each in read_cases(plan) if isinstance(each, Slice)]
        assert [each.level for each in slices] == [0, 1, 2, 3]
        assert all(each.image.shape == (64, 96) for each in slices)
    (tmp_path / "raw" / "train").mkdir()
    (tmp_path / "raw" / "train" / "case_001_slice_0.nii.png").write_bytes(b"not read by a survey")
    with pytest.raises(UserError, match="holds volumes and slices in split folders: choose with --layout volumes or"):
        survey(config)


def test_a_pattern_tells_cases_subjects_splits_and_the_label_maps_of_volumes(tmp_path: Path) -> None:
    voxels = head()
    for name in ("a/PAT7_1_scan", "a/PAT7_2_scan", "b/PAT8_1_scan", "b/phantom"):
        save(tmp_path / f"{name}.nii.gz", voxels)
    save(tmp_path / "a" / "PAT7_2_seg.nii.gz", (voxels > 0).astype(np.uint8))
    found, slices, rejected = read(tmp_path, pattern=r"(?P<subject>PAT\d+)_(?P<session>\d)")
    assert {case.case: case.subject for case in found.cases} == {"PAT7_1": "PAT7", "PAT7_2": "PAT7", "PAT8_1": "PAT8"}
    assert {case for case, of in slices.items() if of[0].labels is not None} == {"PAT7_2"}
    assert rejected == [RejectedFile("b/phantom.nii.gz", "--pattern does not find its case")]
    config = PackConfig("s", "o", pattern=r"(?P<split>val|train)/(?P<case>\w+)\.nii$")
    files = [SourceFile("train/a.nii", 9), SourceFile("val/b.nii", 9)]
    cases = volumes.find_cases(config, files, lambda file: b"").cases
    assert {case.case: case.split for case in cases} == {"a": "train", "b": "validate"}


def test_folders_named_after_splits_are_the_splits_of_volumes() -> None:
    files = [SourceFile(f"{place}/T1.nii", 9) for place in ("train/01", "train/02", "val/03")]
    cases = volumes.find_cases(PackConfig("s", "o"), files, lambda file: b"").cases
    assert {case.case: case.split for case in cases} == {"01": "train", "02": "train", "03": "validate"}


def test_a_folder_per_scan_names_the_cases(tmp_path: Path) -> None:
    voxels = head()
    for name in ("a", "b"):
        save(tmp_path / name / "mri" / "T1.nii.gz", voxels)
        save(tmp_path / name / "mri" / "aseg.nii.gz", (voxels > 0).astype(np.uint8))
    found, slices, _ = read(tmp_path, label_classes="0=background,1=brain")
    assert list(slices) == [case.case for case in found.cases]
    assert sorted(slices) == ["a", "b"]
    assert [of.name for of in found.label_classes] == ["background", "brain"]
    assert all(each.labels is not None for of in slices.values() for each in of)


def test_labels_without_a_class_or_of_fractions_are_rejected_and_their_scan_is_packed(tmp_path: Path) -> None:
    voxels = head()
    for name, label in (("a", 1.0), ("b", 7.0), ("c", 0.5)):
        save(tmp_path / f"{name}.nii.gz", voxels)
        save(tmp_path / f"{name}_seg.nii.gz", (voxels > 0) * np.float32(label))
    _, slices, rejected = read(tmp_path, label_classes="0=background,1=brain")
    assert sorted(slices) == ["a", "b", "c"]
    said = {each.file: each.reason for each in rejected}
    assert said["b_seg.nii.gz"] == "value 7 of its label map has no class: name it with --label-classes"
    assert sorted(said) == ["b_seg.nii.gz", "c_seg.nii.gz"]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (2035, "labels from 0 to 2035: must be from 0 to 255; name those to pack with --label-classes"),
        (0.5, "a label map with values that are not whole numbers: pack the discrete one"),
    ],
)
def test_scans_are_packed_without_labels_if_no_label_volume_can_be_used(
    label: float, reason: str, tmp_path: Path
) -> None:
    voxels = head()
    for name in ("sub-1", "sub-2"):
        save(tmp_path / name / "anat" / f"{name}_T1w.nii.gz", voxels)
        save(tmp_path / name / "anat" / f"{name}_dseg.nii.gz", (voxels > 0) * np.float32(label))
    found, slices, rejected = read(tmp_path)
    assert found.label_classes == ()
    assert sorted(slices) == ["sub-1", "sub-2"]
    assert all(each.labels is None for of in slices.values() for each in of)
    assert {each.file: each.reason for each in rejected} == {
        f"{name}/anat/{name}_dseg.nii.gz": reason for name in ("sub-1", "sub-2")
    }


def test_only_the_slices_of_a_label_volume_need_classes(tmp_path: Path) -> None:
    """The rest is not looked at; and slices may reach beyond the volume, where labels are 0."""
    voxels = head()
    labels = np.ones(SHAPE, np.uint8)
    labels[:30] = 2
    save(tmp_path / "a.nii.gz", voxels)
    save(tmp_path / "a_seg.nii.gz", labels)
    _, slices, rejected = read(tmp_path, label_classes="1=brain,2=other")
    assert [each.reason for each in rejected] == ["value 0 of its label map has no class: name it with --label-classes"]
    assert all(each.labels is None for each in slices["a"])
    labels[:30] = 0
    labels[:, :, 0] = 7
    save(tmp_path / "a_seg.nii.gz", labels)
    _, slices, rejected = read(tmp_path, label_classes="0=background,1=brain")
    assert not rejected
    assert all(each.labels is not None and each.labels.max() == 1 for each in slices["a"])


def changed(voxels: np.ndarray, at: int, data: bytes) -> bytes:
    content = bytearray(nib.Nifti1Image(voxels, AFFINE).to_bytes())
    content[at : at + len(data)] = data
    return bytes(content)


def bad_volumes() -> dict[str, tuple[bytes, str]]:
    """Content of a file, and the reason for which it is rejected."""
    voxels = head()
    good = nib.Nifti1Image(voxels, AFFINE).to_bytes()
    colors = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    noise = np.where(voxels > 0, np.nan, np.nan).astype(np.float32)
    return {
        "empty": (b"", "a header of 0 bytes instead of 348|not a NIfTI file"),
        "text": (b"no scan " * 100, "not a NIfTI file"),
        "without voxels": (good[:352], r"0 bytes of voxels, 595200 are needed: truncated"),
        "truncated gzip": (gzip.compress(good)[:5000], "truncated"),
        "a gzip with another checksum": (gzip.compress(good)[:-8] + bytes(8), "damaged"),
        "10^12 voxels": (
            changed(voxels, 42, np.array([10000, 10000, 10000], "<i2").tobytes()),
            "10000 x 10000 x 10000 voxels: more than",
        ),
        "fMRI": (
            nib.Nifti1Image(np.stack([voxels] * 2, -1), AFFINE).to_bytes(),
            "60 x 80 x 62 x 2 voxels: a series of volumes",
        ),
        "colours": (nib.Nifti1Image(colors, AFFINE).to_bytes(), "colours or complex numbers"),
        "complex": (nib.Nifti1Image(voxels.astype(np.complex64), AFFINE).to_bytes(), "colours or complex numbers"),
        "NaN": (nib.Nifti1Image(noise, AFFINE).to_bytes(), "all its voxels are NaN or infinite"),
        "constant": (nib.Nifti1Image(np.ones(SHAPE, np.int16), AFFINE).to_bytes(), "all its voxels are 1"),
        "far apart": (nib.Nifti1Image(voxels, AFFINE * 100).to_bytes(), "voxels 200 x 200 x 200 mm apart"),
        "flat": (nib.Nifti1Image(voxels[:, :, :1], AFFINE).to_bytes(), "60 x 80 x 1 voxels: not a volume"),
        "a strange offset": (changed(voxels, 108, np.float32(1e30).tobytes()), "its header puts the voxels at byte"),
    }


@pytest.mark.parametrize("bad", bad_volumes())
def test_a_bad_volume_is_rejected_with_the_reason(bad: str) -> None:
    data, said = bad_volumes()[bad]
    with pytest.raises(ValueError, match=said) as error:
        read_volume("x.nii.gz", data)
    assert "\n" not in str(error.value)


def test_nan_and_unknown_orientation_are_noted() -> None:
    voxels = head().astype(np.float32)
    voxels[0, 0, 0] = np.nan
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_sform(None)
    image.set_qform(None)
    volume = read_volume("x.nii", image.to_bytes())
    assert np.isfinite(volume.voxels).all()
    assert len(volume.notes) == 2
    files = {kind: io.BytesIO() for kind in ("image", "header")}
    pair = {kind: nib.FileHolder(fileobj=file) for kind, file in files.items()}
    nib.AnalyzeImage(head(), np.diag([-2, 2, 2, 1])).to_file_map(pair)
    image_bytes, header = (files[kind].getvalue() for kind in ("image", "header"))
    (note,) = read_volume("x.img", image_bytes, header).notes
    assert note.startswith("its header gives no orientation")


def test_two_scans_of_a_case_half_a_pair_and_a_bad_scan_are_rejected_and_the_rest_is_packed(tmp_path: Path) -> None:
    voxels = head()
    save(tmp_path / "one" / "a.nii.gz", voxels)
    save(tmp_path / "two" / "a.nii.gz", voxels)
    save(tmp_path / "b.nii.gz", voxels)
    save(tmp_path / "c.img", voxels, kind=nib.Nifti1Pair)
    (tmp_path / "c.hdr").unlink()
    (tmp_path / "d.nii.gz").write_bytes(b"no scan " * 100)
    _, slices, rejected = read(tmp_path)
    assert list(slices) == ["b"]
    said = {each.file: each.reason for each in rejected}
    assert said["one/a.nii.gz"].startswith("one/a.nii.gz and two/a.nii.gz are 2 scans of case a: keep one")
    assert said["c.img"] == "no c.hdr beside it: copy both files of the pair"
    assert said["d.nii.gz"].startswith("not a NIfTI file")


def test_the_mni_template_shows_its_ventricles_and_its_tissues(tmp_path: Path) -> None:
    data = Path(nilearn.datasets.__file__).parent / "data"
    t1, grey, white = (
        nib.Nifti1Image.from_filename(data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        for kind in ("t1", "gm", "wm")
    )
    is_grey, is_white = np.asarray(grey.dataobj), np.asarray(white.dataobj)
    tissue = np.where(np.maximum(is_grey, is_white) < 100, 0, np.where(is_grey > is_white, 1, 2)).astype(np.uint8)
    (tmp_path / "mni_T1w.nii.gz").write_bytes((data / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz").read_bytes())
    save(tmp_path / "mni_dseg.nii.gz", tissue, t1.affine)
    _, slices, rejected = read(tmp_path, size="256x256", mm=1.0, levels=32)
    assert rejected == []
    z = round(81 - 82 - t1.affine[2, 3])  # of level 0
    shown, labels = slices["mni_T1w"][0].image, slices["mni_T1w"][0].labels
    assert labels is not None
    plane, maps = np.asarray(t1.dataobj)[:, :, z], tissue[:, :, z]
    x, y = (np.flatnonzero(plane.any(axis)) for axis in (1, 0))
    rows, columns = (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    row, column = int(rows[-1] - x[-1]), int(columns[-1] - y[-1])
    assert np.array_equal(labels[row : row + 197, column : column + 233], maps)


@pytest.mark.skipif("OASISGEN_MRICRON_DIR" not in os.environ, reason="needs mricron's templates")
def test_mricrons_templates_are_packed(tmp_path: Path) -> None:
    folder = Path(os.environ["OASISGEN_MRICRON_DIR"])
    for name in ("ch2", "ch2bet", "ch2better"):
        (tmp_path / f"{name}.nii.gz").symlink_to(folder / f"{name}.nii.gz")
    _, slices, rejected = read(tmp_path)
    assert rejected == []
    assert sorted(slices) == ["ch2", "ch2bet", "ch2better"]
    assert all((each.image > 0).mean() > 0.1 for of in slices.values() for each in of)
