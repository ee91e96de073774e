"""DICOM series as volumes: find which files of a source belong to which scan, and which scans to which person.

The survey reads only the beginning of each file. Of the tags that identify a person, it uses only PatientID, and never
writes it: a subject is named after its folder, or else after a digest of its PatientID.
"""

import hashlib
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Case, Found, Scan, SourceFile, UnusedFile, VolumeFile
from oasisgen.data.description import RejectedFile
from oasisgen.data.dicom_header import NAMED, Header, Read, is_dicom, read_header
from oasisgen.data.dicom_reader import LEAST_SLICES, pydicom_module, read_series
from oasisgen.data.feed import chunks, evenly_spaced
from oasisgen.data.names import Named, by_pattern
from oasisgen.data.volume_reader import MOST_BYTES, VolumeData
from oasisgen.errors import UserError
from oasisgen.progress import say

INDEX = re.compile(r"DICOMDIR(\..*)?", re.IGNORECASE)  # on discs: lists the files
OTHERS = re.compile(  # what lies beside them, and is not opened
    r".*\.(png|jpe?g|gif|bmp|tiff?|svg|json|[tc]sv|xlsx?|txt|md|rst|log|xml|html?|css|js|pdf|docx?|bvals?|bvecs?|py|sh|m"
    r"|mat|npz|npy|exe|dll|inf|ini)|README|LICENSE|CHANGES",
    re.IGNORECASE,
)
LOOKED_AT = 64  # files of any name that are opened to see whether a source holds DICOM
OPEN_FILES = 16  # concurrent reads, to hide an object store's latency
T1 = re.compile(r"(?<![a-z])(t1(?![0-9])|mp[ _-]?rage|f?spgr|bravo)", re.IGNORECASE)


@dataclass(eq=False)
class Series:
    """The files of a scan."""

    header: Header  # of one of them
    files: list[SourceFile] = field(default_factory=list)

    @property
    def folders(self) -> list[str]:
        """The folders that all files lie in; of archives, without their endings."""
        paths = sorted(file.path for file in self.files)
        shared = posixpath.commonpath([posixpath.dirname(paths[0]), posixpath.dirname(paths[-1])])
        return [re.sub(r"\.(tar|tar\.gz|tgz|zip)$", "", name, flags=re.I) for name in shared.split("/") if name]


def matches(files: Sequence[SourceFile], read: Read) -> bool:
    """Whether there are DICOM files, by their names, or by the content of a few."""
    if any(NAMED.fullmatch(posixpath.basename(file.path)) for file in files):
        return True
    others = [file for file in files if _may_be(file)]
    return any(is_dicom(read(others[at], 132)) for at in evenly_spaced(len(others), LOOKED_AT))


def _may_be(file: SourceFile) -> bool:
    name = posixpath.basename(file.path)
    return file.size > 132 and not OTHERS.fullmatch(name) and not INDEX.fullmatch(name)


def find_cases(config: PackConfig, files: Sequence[SourceFile], read: Read) -> Found:
    """The scans among `files`, whose beginnings are read. Raises UserError if there is none, or without pydicom."""
    pydicom_module()
    files = [file for file in files if not INDEX.fullmatch(posixpath.basename(file.path))]
    series, rejected, unused = _series(files, read)
    usable = []
    for of in series:
        first = of.files[0].path
        if sum(file.size for file in of.files) > MOST_BYTES:
            rejected.append(RejectedFile(first, f"a series of {len(of.files)} files, more than {MOST_BYTES} bytes"))
        elif len(of.files) < LEAST_SLICES:
            unused += [UnusedFile(file.path, f"of a series of fewer than {LEAST_SLICES} slices") for file in of.files]
        else:
            usable.append(of)
    chosen, several, more_unused = _chosen(usable)
    cases, nameless = _cases(config, chosen)
    rejected, unused = [*rejected, *several, *nameless], [*unused, *more_unused]
    if not cases:
        whys = [f"{file}: {reason}" for file, reason in (*((of.file, of.reason) for of in rejected), *unused)]
        raise UserError(f"no volumes in {config.source}: {(whys or ['it is empty'])[0]}")
    say("pack", f"dicom: {len(cases)} of {len(series)} series are packed")
    left_out = {file.path for file in unused}
    used = [file for file in files if file.path not in left_out]
    return Found(cases, used, rejected, unused, config.slice_size)


def _series(files: Sequence[SourceFile], read: Read) -> tuple[list[Series], list[RejectedFile], list[UnusedFile]]:
    """The series that may be scans, what cannot be used, and what is something else."""
    found: dict[str, Series] = {}
    rejected, unused, candidates = [], [], []
    for file in files:
        if _may_be(file) or NAMED.fullmatch(posixpath.basename(file.path)):
            candidates.append(file)
        else:
            unused.append(UnusedFile(file.path, "not a volume"))
    candidates.sort(key=_place)
    say("pack", f"dicom: looking at {len(candidates)} files")
    for file, header in _headers(candidates, read):
        if header is None:
            unused.append(UnusedFile(file.path, "not a volume"))
        elif header.is_rejected:
            rejected.append(RejectedFile(file.path, header.wrong))
        elif header.wrong:
            unused.append(UnusedFile(file.path, header.wrong))
        else:
            found.setdefault(header.series, Series(header)).files.append(file)
    return sorted(found.values(), key=lambda of: min(file.path for file in of.files)), rejected, unused


def _place(file: SourceFile) -> tuple[str, int, str]:
    """Where a file lies: a .tar.gz is read from its start to its end."""
    return (file.member.archive, file.member.start, file.path) if file.member else ("", 0, file.path)


def _readers(files: Sequence[SourceFile]) -> int:
    """Number of files to read at the same time: one by one from a .tar.gz, where every step back costs."""
    return 1 if any(file.member and file.member.method == "gzip" for file in files) else OPEN_FILES


def _headers(files: Sequence[SourceFile], read: Read) -> Iterator[tuple[SourceFile, Header | None]]:
    with ThreadPoolExecutor(_readers(files)) as pool:
        for some in chunks(files, 1024):
            yield from zip(some, pool.map(lambda file: read_header(file, read), some), strict=True)


def _chosen(series: Sequence[Series]) -> tuple[list[Series], list[RejectedFile], list[UnusedFile]]:
    """The T1-weighted scans of each study, or its only scan."""
    studies: dict[str, list[Series]] = defaultdict(list)
    for of in series:
        studies[of.header.study or of.header.patient].append(of)
    chosen: list[Series] = []
    rejected, unused = [], []
    for of_study in studies.values():
        scans = of_study
        if len(scans) > 1:
            scans = [of for of in scans if T1.search(of.header.title or "/".join(of.folders[-1:]))]
            scans = [of for of in scans if of.header.is_original] or scans
        if not scans:
            first = of_study[0].files[0].path
            why = f"{len(of_study)} series in its study, and none is named T1 or MPRAGE: keep one"
            rejected.append(RejectedFile(first, why))
        for of in of_study:
            if scans and of not in scans:
                unused += [UnusedFile(file.path, "not of the T1-weighted scan of its study") for file in of.files]
        chosen += scans
    return chosen, rejected, unused


def _cases(config: PackConfig, series: Sequence[Series]) -> tuple[list[Case], list[RejectedFile]]:
    """A case for each series, and the series in whose path --pattern finds none. Equal names are numbered by time,
    without the numbers that would give the name of another case.
    """
    names: dict[str, list[tuple[Named, Series]]] = defaultdict(list)
    rejected = []
    subjects = [""] * len(series) if config.pattern else _subjects(series)
    for subject, of in zip(subjects, series, strict=True):
        try:
            named = Named(subject, subject, level=0, split="", labels=False)
            if config.pattern:
                named = by_pattern(of.files[0].path, re.compile(config.pattern))
            names[named.case].append((named, of))
        except ValueError as reason:
            rejected.append(RejectedFile(of.files[0].path, str(reason)))
    cases = []
    for name, scans in sorted(names.items()):
        scans.sort(key=lambda scan: (scan[1].header.when, scan[1].files[0].path))
        numbered = (each for number in count(1) if (each := f"{name}_{number}") not in names)
        for named, of in scans:
            case = next(numbered) if len(scans) > 1 else name
            scan = Scan(VolumeFile(of.files[0], series=tuple(of.files)))
            cases.append(Case(case=case, subject=named.subject, split=named.split, levels=config.levels, scan=scan))
    return sorted(cases, key=lambda case: case.case), rejected


def _subjects(series: Sequence[Series]) -> list[str]:
    """The subject of each series: its folder at the outermost level that tells persons apart as PatientID does, or
    else a digest of PatientID.

    If all have the same PatientID, as some anonymisers write, it is the folder at the outermost level that has several
    folders and splits no study.
    """
    folders = [of.folders for of in series]
    patients = [of.header.patient for of in series]
    persons = len(set(filter(None, patients)))
    for level in range(min(map(len, folders), default=0)):
        names = [of[level] for of in folders]
        studies = {(of.header.study, name) for of, name in zip(series, names, strict=True) if of.header.study}
        pairs = {(patient, name) for patient, name in zip(patients, names, strict=True) if patient}
        if len(set(names)) < 2 or len({study for study, _ in studies}) < len(studies):
            continue
        if persons < 2:
            say("pack", f"dicom: PatientID tells no persons apart, so {len(set(names))} folders such as {names[0]} do")
            return names
        if persons == len(pairs) == len({name for _, name in pairs}):
            return names
    if len(series) > 1:
        say("pack", "dicom: the folders tell no persons apart, so subjects are named by a digest of PatientID")
    return [_pseudonym(patient) for patient in patients]


def _pseudonym(patient: str) -> str:
    return f"patient-{hashlib.sha256(patient.encode()).hexdigest()[:10]}" if patient else "patient-unknown"


def read(volume: VolumeFile, read: Read) -> VolumeData:
    """The volume of a series. Raises ValueError with the reason."""
    files = sorted(volume.series, key=_place)
    with ThreadPoolExecutor(_readers(files)) as pool:
        names = (posixpath.basename(file.path) for file in files)
        return read_series(zip(names, pool.map(read, files), strict=True))
