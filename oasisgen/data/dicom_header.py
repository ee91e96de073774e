"""Read the beginning of a DICOM file: which series it belongs to, and whether it is a slice of a volume."""

import io
import posixpath
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from oasisgen.data.cases import SourceFile
from oasisgen.data.dicom_reader import DAMAGED, pydicom_module
from oasisgen.data.volume_reader import MOST_BYTES

NAMED = re.compile(r".*\.(dcm|dicom|ima)", re.IGNORECASE)
START_BYTES = 1 << 15  # of a file: nearly always holds the tags of a survey
LAST_TAG = 0x00280011  # Columns: all of TAGS lie before it
TAGS = (
    "ImageType", "StudyDate", "StudyTime", "Modality", "SeriesDescription", "ProtocolName", "PatientID",
    "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "ImagePositionPatient", "ImageOrientationPatient",
    "SamplesPerPixel", "NumberOfFrames", "Rows", "Columns",
)  # fmt: skip
LOCALIZER = re.compile(r"locali[sz]er|scout|survey|3-?plane", re.IGNORECASE)
NO_DICOM = "no DICOM file, against its name: copy it again, or remove it"
Read = Callable[..., bytes]  # (file) or (file, bytes from its start)


class Header(NamedTuple):
    """What a survey needs to know of a file."""

    series: str
    study: str
    patient: str
    when: tuple[str, str, int]  # date, time, number of the series
    title: str
    is_original: bool  # not computed from other series
    wrong: str = ""  # why it is no slice of a volume
    is_rejected: bool = False  # it may be a scan that somebody wants, so that it is rejected and not just unused


def is_dicom(start: bytes) -> bool:
    """Whether a file with this beginning is a DICOM file."""
    return start[128:132] == b"DICM"


def read_header(file: SourceFile, read: Read) -> Header | None:
    """What the tags of a file say; None if it is no DICOM file and is not named like one."""
    if file.size > MOST_BYTES:
        return _rejected(f"{file.size} bytes: no slice takes more than {MOST_BYTES}")
    start = read(file, START_BYTES)
    if not is_dicom(start):
        return _rejected(NO_DICOM) if NAMED.fullmatch(posixpath.basename(file.path)) else None
    dataset = _tags(start, len(start) == file.size)
    if dataset is None and len(start) < file.size:
        dataset = _tags(read(file), is_whole=True)
    try:
        return _rejected(DAMAGED) if dataset is None else _said(dataset)
    except Exception:  # pydicom converts a value when it is asked for; its errors may quote it
        return _rejected("tags that cannot be read: copy it again, or convert it to NIfTI by dcm2niix")


def _rejected(why: str) -> Header:
    return Header("", "", "", ("", "", 0), "", True, why, True)


def _tags(start: bytes, is_whole: bool) -> Any:
    """The tags in the start of a file, or None if it ends before the last of them.

    A whole file may end before it: objects such as raw data have no tags of an image.
    """
    pydicom = pydicom_module()
    is_past = False

    def stop(tag: int, _: str | None, __: int) -> bool:
        nonlocal is_past
        is_past = is_past or tag > LAST_TAG
        return is_past

    tags = [pydicom.tag.Tag(keyword) for keyword in TAGS]
    try:
        dataset = pydicom.filereader.read_partial(io.BytesIO(start), stop, specific_tags=tags)
        return dataset if is_past or (is_whole and not _is_image(dataset)) else None
    except MemoryError:
        raise
    except Exception:  # where a value is cut off or damaged
        return None


def _is_image(dataset: Any) -> bool:
    """Whether a file says it is an image, or does not say what it is."""
    kind = dataset.file_meta.get("MediaStorageSOPClassUID")
    return not kind or "Image" in pydicom_module().uid.UID(kind).name


def _said(dataset: Any) -> Header:
    """The tags of a file, and whether it is a slice of a volume."""

    def text(keyword: str) -> str:
        return str(dataset.get(keyword) or "").strip()

    kind = [str(part).upper() for part in _several(dataset.get("ImageType"))]
    title = text("SeriesDescription") or text("ProtocolName")
    number = text("SeriesNumber")
    header = Header(
        series=text("SeriesInstanceUID"),
        study=text("StudyInstanceUID"),
        patient=text("PatientID"),
        when=(text("StudyDate"), text("StudyTime"), int(number) if number.isdigit() else 0),
        title=title,
        is_original="DERIVED" not in kind,
    )
    if not dataset.get("Rows") or not dataset.get("Columns"):
        return header._replace(wrong="a DICOM object that is no image")
    if text("Modality") != "MR":
        return header._replace(wrong="a DICOM image of another kind than MR")
    if "LOCALIZER" in kind or LOCALIZER.search(title):
        return header._replace(wrong="a localizer")
    if dataset.get("SamplesPerPixel", 1) != 1:
        return header._replace(wrong="a DICOM image in colours")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        why = "a multi-frame DICOM file, which is not read: convert it to NIfTI by dcm2niix"
        return header._replace(wrong=why, is_rejected=True)
    if not dataset.get("ImagePositionPatient") or not dataset.get("ImageOrientationPatient"):
        return header._replace(wrong="a DICOM image without position or orientation")
    if not header.series:
        return header._replace(wrong="no SeriesInstanceUID: export it again", is_rejected=True)
    return header


def _several(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) else (value or [])
