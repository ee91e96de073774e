"""Survey a source: list its files, recognise its layout, find its cases."""

import hashlib
from collections.abc import Sequence
from functools import partial

from oasisgen import storage
from oasisgen.config.pack import PackConfig
from oasisgen.data import dicom, oasis1, slice_files, volumes
from oasisgen.data.cases import SourceFile, Survey
from oasisgen.data.covariates import add_covariates, address_of_table
from oasisgen.data.description import by_reason
from oasisgen.data.dicom_header import Read
from oasisgen.data.images import silence_pillow
from oasisgen.data.splits import assign_splits
from oasisgen.data.text_tables import read_text_table
from oasisgen.data.tree import list_tree, read_file
from oasisgen.errors import UserError
from oasisgen.progress import say


def survey(config: PackConfig) -> Survey:
    """Find the cases of `config.source`.

    Raises UserError if the folder or archive is missing or damaged, holds no slice, or has a subject in two splits.
    """
    silence_pillow()
    config = config.absolute()
    source = config.source
    splits = read_text_table(config.splits, "--splits") if config.splits else None
    files, dangling, outside = list_tree(source)
    tables = config.splits, address_of_table(config)
    scans = [file for file in files if storage.join(source, file.path) not in tables]
    read = partial(read_file, source)
    layout = _layout(config, scans, read)
    if fault := config.misfit(layout):
        raise UserError(f"{source} is read as layout {layout}, which {fault}, or force another layout by --layout")
    if layout == "oasis1":
        found = oasis1.find_cases(source, scans, read)
        subjects = len({case.subject for case in found.cases})
        say("pack", f"oasis1: {len(found.cases)} scans of {subjects} subjects")
    elif layout == "volumes":
        # Recognised as volumes without a volume file, they are DICOM: it is looked for once.
        is_dicom = not volumes.matches(scans) and (config.layout == "auto" or dicom.matches(scans, read))
        find_cases = dicom.find_cases if is_dicom else volumes.find_cases
        found = find_cases(config, scans, read)
        labelled = sum(case.scan is not None and case.scan.labels is not None for case in found.cases)
        say("pack", f"volumes: {len(found.cases)} scans, {labelled} with label maps")
    else:
        found = slice_files.find_cases(config, scans, read)
    if config.label_classes is not None and not found.label_classes:
        raise UserError(
            f"{source} has no label maps for --label-classes: leave it out, or add them as docs/data.md says"
        )
    cases, left_out = assign_splits(config, found.cases, splits)
    joined = add_covariates(config, cases, files)
    digest, times = hashlib.sha256(), hashlib.sha256()
    for file in found.used:
        digest.update(f"{file.path} {file.size}\n".encode())
        times.update(f"{file.modified}\n".encode())
    for name, sha256 in (("splits", splits.sha256 if splits else ""), ("table", joined.sha256)):
        digest.update(f"{name} {sha256}\n".encode() if sha256 else b"")
    return Survey(
        layout=layout,
        cases=tuple(joined.cases),
        rejected=(*dangling, *found.rejected),
        unused=by_reason([*outside, *found.unused, *left_out, *joined.unused]),
        image_size=found.image_size,
        label_classes=found.label_classes,
        covariates=joined.covariates,
        fingerprint=digest.hexdigest(),
        times=times.hexdigest(),
    )


def _layout(config: PackConfig, files: Sequence[SourceFile], read: Read) -> str:
    """The layout that the flags or the files tell. Raises UserError if they fit two."""
    if config.layout != "auto":
        return config.layout
    is_slices = slice_files.matches(files)
    other = "oasis1" if oasis1.matches(files) else "volumes" if volumes.matches(files) else ""
    if is_slices and other:
        what = "OASIS-1 scans" if other == "oasis1" else "volumes"
        raise UserError(
            f"{config.source} holds {what} and slices in split folders: choose with --layout {other} or --layout slices"
        )
    if not is_slices and not other and dicom.matches(files, read):
        return "volumes"
    return other or "slices"
