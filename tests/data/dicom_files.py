"""Volumes written as DICOM series, as scanners and archives write them."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, RawDataStorage, generate_uid

PERSON = "Doe^Jane"  # in every file: nothing of it may be written
BIRTH = "19500102"
PLANES = {"axial": (0, 1, 2), "sagittal": (1, 2, 0), "coronal": (0, 2, 1)}  # axes of voxels: columns, rows, slices


def series(
    voxels: np.ndarray,
    affine: np.ndarray,
    plane: str = "axial",
    *,
    slope: float = 1,
    intercept: float = 0,
    **tags: object,
) -> list[Dataset]:
    """The slices of a volume (X, Y, Z) with its affine to RAS. `tags` are set in each."""
    turned = voxels.transpose(PLANES[plane])
    lps = np.diag([-1.0, -1, 1, 1]) @ affine[:, [*PLANES[plane], 3]]
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    slices = []
    for number in range(turned.shape[2]):
        of = Dataset()
        of.file_meta = FileMetaDataset()
        of.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        of.SOPClassUID, of.SOPInstanceUID = MRImageStorage, generate_uid()
        of.file_meta.MediaStorageSOPClassUID, of.file_meta.MediaStorageSOPInstanceUID = (
            of.SOPClassUID,
            of.SOPInstanceUID,
        )
        of.Modality, of.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "ND"]
        of.PatientName, of.PatientBirthDate, of.PatientID = PERSON, BIRTH, "4711"
        of.StudyDate, of.SeriesDescription = "20260102", "t1_mprage_sag"
        of.ImageOrientationPatient = [float(x) for x in (*(lps[:3, 0] / steps[0]), *(lps[:3, 1] / steps[1]))]
        of.ImagePositionPatient = [float(x) for x in lps[:3, 2] * number + lps[:3, 3]]
        of.PixelSpacing, of.SliceThickness = [float(steps[1]), float(steps[0])], float(steps[2])
        of.InstanceNumber = (number * 7) % 11  # of no use
        of.SamplesPerPixel, of.PhotometricInterpretation = 1, "MONOCHROME2"
        of.BitsAllocated, of.BitsStored, of.HighBit = 16, 16, 15
        stored = np.rint((turned[:, :, number] - intercept) / slope).astype("<i2").T  # (rows, columns)
        of.PixelRepresentation = 1
        of.RescaleSlope, of.RescaleIntercept = slope, intercept
        of.Rows, of.Columns = stored.shape
        of.PixelData = stored.tobytes()
        for keyword, value in (uids | tags).items():
            setattr(of, keyword, value)
        slices.append(of)
    return slices


def raw_data() -> Dataset:
    """An object that ends before the tags that images have."""
    of = Dataset()
    of.file_meta = FileMetaDataset()
    of.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    of.SOPClassUID, of.SOPInstanceUID = RawDataStorage, generate_uid()
    of.Modality, of.PatientID, of.SeriesInstanceUID = "MR", "4711", generate_uid()
    return of


def write(folder: Path, slices: list[Dataset], name: str = "IM_{:04d}") -> list[Path]:
    """Write the slices in random order under numbered names."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(len(slices)).permutation(len(slices))
    files = [folder / name.format(number) for number in range(len(slices))]
    for file, at in zip(files, order, strict=True):
        pydicom.dcmwrite(file, slices[at], enforce_file_format=True)
    return files
