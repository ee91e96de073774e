"""The files of a DICOM series become the volume that they were written from, or give one reason."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLosslessSV1, RLELossless

from oasisgen.data.dicom_reader import read_series
from oasisgen.data.volume_reader import VolumeData, read_volume
from tests.data.dicom_files import BIRTH, PERSON, PLANES, series, write

SHAPE = 12, 14, 16
AFFINE = np.array([[2.0, 0, 0, -12], [0, 2.5, 0, -14], [0, 0, 3, -16], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-500, 2000, SHAPE).astype(np.int16)


def contents(files: list[Path]) -> list[tuple[str, bytes]]:
    return [(file.name, file.read_bytes()) for file in files]


def as_nifti(affine: np.ndarray, voxels: np.ndarray = VOXELS) -> VolumeData:
    return read_volume("x.nii", nib.Nifti1Image(voxels, affine).to_bytes())


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("degrees", [0, 17])
def test_a_series_is_the_volume_that_nifti_gives(plane: str, degrees: float, tmp_path: Path) -> None:
    affine = turned(degrees)
    volume = read_series(contents(write(tmp_path, series(VOXELS, affine, plane))))
    same = as_nifti(affine)
    assert np.array_equal(volume.voxels, same.voxels)
    assert np.allclose(volume.affine, same.affine, atol=1e-4)
    assert volume.notes == ()


def test_slope_intercept_and_rle_are_applied_per_slice(tmp_path: Path) -> None:
    voxels = (VOXELS // 2 * 2).astype(np.int16)
    slices = series(voxels, AFFINE, slope=2, intercept=-100)
    for number, of in enumerate(slices):
        if number % 2:
            of.PixelData = (of.pixel_array // 2).astype("<i2").tobytes()
            of.RescaleSlope = 4
        of.compress(RLELossless)
    volume = read_series(contents(write(tmp_path, slices)))
    exact = as_nifti(AFFINE, voxels).voxels
    assert np.array_equal(volume.voxels[:, :, ::2], exact[:, :, ::2])
    assert np.abs(volume.voxels - exact)[:, :, 1::2].max() <= 4


def drop(*keywords: str) -> Callable[[list[Dataset]], None]:
    def change(slices: list[Dataset]) -> None:
        for keyword in keywords:
            delattr(slices[5], keyword)

    return change


def put(**tags: object) -> Callable[[list[Dataset]], None]:
    def change(slices: list[Dataset]) -> None:
        for keyword, value in tags.items():
            setattr(slices[5], keyword, value)

    return change


def half(slices: list[Dataset]) -> None:
    slices[5].PixelData = slices[5].PixelData[:100]


def smaller(slices: list[Dataset]) -> None:
    slices[5].Rows //= 2
    slices[5].PixelData = slices[5].PixelData[: len(slices[5].PixelData) // 2]


def lossless(slices: list[Dataset]) -> None:
    for of in slices:
        of.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        of.PixelData = (
            b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00\xff\xd8\xff\xd9\xfe\xff\xdd\xe0"
            + bytes(4)
        )
        of["PixelData"].is_undefined_length = True


BAD: dict[str, tuple[Callable[[list[Dataset]], object], str]] = {
    "a gap": (lambda slices: slices.pop(5), r"slices are missing between IM_\d+ and IM_\d+: copy"),
    "copies": (lambda slices: slices.append(slices[5]), r"1 slices lie where another one does, such as IM_\d+ and"),
    "several volumes": (lambda slices: slices.extend(slices[:]), "16 slices lie where another one does"),
    "too few": (lambda slices: slices.__delitem__(slice(4, None)), "4 slices: too few for a volume"),
    "another size": (smaller, r"IM_\d+: 12 x \d+ pixels, but IM_\d+ of its series has 12 x"),
    "another orientation": (put(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "several orientations in one series"),
    "another spacing": (put(PixelSpacing=[1.0, 1.0]), "its pixels have another size"),
    "beside the stack": (put(ImagePositionPatient=[50.0, 14, -1]), "do not lie in one even stack"),
    "skewed axes": (put(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "is none of a grid of pixels"),
    "no position": (drop("ImagePositionPatient"), "no usable ImagePositionPatient: copy it again, or"),
    "no spacing": (drop("PixelSpacing"), "no usable PixelSpacing"),
    "no pixels": (drop("PixelData"), "no pixel data: copy it again, with its pixels"),
    "half its pixels": (half, "truncated or damaged: copy it again"),
    "colours": (put(PhotometricInterpretation="RGB", SamplesPerPixel=3), "its pixels are colours or a negative"),
    "a negative": (put(PhotometricInterpretation="MONOCHROME1"), "its pixels are colours or a negative"),
    "no slope": (put(RescaleSlope="inf"), "no usable RescaleSlope"),
    "JPEG Lossless": (lossless, "compressed as JPEG Lossless, .* beyond pydicom alone: install pylibjpeg and"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_series_gives_one_reason_without_a_persons_data(bad: str, tmp_path: Path) -> None:
    change, said = BAD[bad]
    slices = series(VOXELS, AFFINE)
    change(slices)
    files = contents(write(tmp_path, slices))
    with pytest.raises(ValueError, match=said) as error:
        read_series(files)
    text = str(error.value)
    assert "\n" not in text
    assert PERSON not in text
    assert BIRTH not in text


@pytest.mark.parametrize("kept", [0, 100, 131, 200, 600, -1])
def test_a_truncated_file_is_named(kept: int, tmp_path: Path) -> None:
    files = contents(write(tmp_path, series(VOXELS, AFFINE)))
    files[3] = files[3][0], files[3][1][:kept]
    with pytest.raises(ValueError, match=r"^IM_0003: (truncated or damaged|no usable|no pixel data).*copy it again"):
        read_series(files)


@pytest.mark.parametrize(
    "tag",
    [
        b"\x28\x00\x02\x00US",  # SamplesPerPixel
        b"\x28\x00\x04\x00CS",  # PhotometricInterpretation
        b"\x28\x00\x10\x00US",  # Rows
        b"\x28\x00\x52\x10DS",  # RescaleIntercept
        b"\x28\x00\x53\x10DS",  # RescaleSlope
        b"\x02\x00\x10\x00UI",  # TransferSyntaxUID
    ],
)
@pytest.mark.parametrize("kind", [b"C\xb0", b"FD"])
def test_a_tag_with_another_value_representation_is_no_traceback(tag: bytes, kind: bytes, tmp_path: Path) -> None:
    files = contents(write(tmp_path, series(VOXELS, AFFINE, slope=2, intercept=-100)))
    assert tag in files[3][1]
    files[3] = files[3][0], files[3][1].replace(tag, tag[:4] + kind)
    with pytest.raises(ValueError, match=r"^IM_0003: (truncated or damaged|no usable \w+|its pixels are colours)"):
        read_series(files)
