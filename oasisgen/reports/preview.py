"""The preview of a data set: what packing would write, for a person to look at before hours of training."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from oasisgen import __version__, storage
from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Case, Slice, Survey
from oasisgen.data.cut import EDGES
from oasisgen.data.description import RejectedFile
from oasisgen.data.feed import evenly_spaced
from oasisgen.data.labels import legend
from oasisgen.data.pack import PREVIEW, survey_for
from oasisgen.data.parts import plan_parts, read_cases
from oasisgen.errors import UserError
from oasisgen.reports import figures
from oasisgen.reports.page import Section, render

LEVELS_SHOWN = 8

Read = dict[str, list[Slice]]
"""The slices of each case that could be read, by level."""


def write_preview(config: PackConfig) -> str:
    """Write `<out>/preview/slices.png` and `<out>/preview/index.html`; returns the URI of the page.

    They show `config.preview` cases, evenly spaced over the source, and nothing is packed. Raises UserError as `pack`
    does for the source, if `out` holds files that oasisgen did not write, and if no shown slice can be read.
    """
    config, found = survey_for(config)
    out = config.out
    chosen = [found.cases[number] for number in evenly_spaced(len(found.cases), config.preview)]
    slices, rejected = _read(found, chosen, config)
    if not slices:
        raise UserError(f"no slice of the cases shown can be read: {rejected[0].file}: {rejected[0].reason}")
    sheet = contact_sheet([slices[case.case] for case in chosen if case.case in slices])
    storage.write_text(storage.join(out, PREVIEW), "a preview of packing; remove it when you like\n")
    storage.write_bytes(storage.join(out, "preview", "slices.png"), sheet)
    page = storage.join(out, "preview", "index.html")
    storage.write_bytes(page, _page(found, chosen, slices, rejected, sheet, config))
    return page


def _read(found: Survey, chosen: Sequence[Case], config: PackConfig) -> tuple[Read, list[RejectedFile]]:
    """The slices of some cases, and the files that cannot be used."""
    slices: Read = defaultdict(list)
    rejected: list[RejectedFile] = []
    for plan in plan_parts(replace(found, cases=tuple(chosen)), config, None):
        for case, each in read_cases(plan):
            if isinstance(each, Slice):
                slices[case.case].append(each)
            else:
                rejected.append(each)
    return slices, rejected


def contact_sheet(cases: Sequence[Sequence[Slice]]) -> bytes:
    """A PNG with a row of slices for each case, evenly spaced levels from low to high; below it, if the case has label
    maps, the same slices with their label maps over them."""
    rows = []
    for slices in cases:
        shown = [slices[number] for number in evenly_spaced(len(slices), LEVELS_SHOWN)]
        rows.append([figures.overlay(each.image) for each in shown])
        if any(each.labels is not None for each in shown):
            rows.append([figures.overlay(each.image, each.labels) for each in shown])
    return figures.montage(rows)


def _page(
    found: Survey,
    chosen: Sequence[Case],
    slices: Read,
    rejected: Sequence[RejectedFile],
    sheet: bytes,
    config: PackConfig,
) -> bytes:
    shown = [case for case in chosen if case.case in slices]
    height, width = found.image_size
    splits = [(name, len(cases), sum(case.count for case in cases)) for name, cases in found.split_cases().items()]
    unused = [(each.reason, each.count, ", ".join(each.examples)) for each in found.unused]
    sections = [
        Section(
            "Splits",
            f"Slices of {width} x {height} pixels. A case is one scan; all cases of a subject are in one split.",
            columns=("split", "cases", "slices"),
            table=tuple(splits),
        ),
        Section(
            "Slices",
            "A row per case, in the order of the table below, with evenly spaced levels from the lowest (left) to the "
            f"highest (right). {_edges(found, config)}{_legend(found)}"
            "Check that all heads have the same orientation and are complete, and "
            "that none is much darker or brighter than the others.",
            figure=figures.embed(sheet),
            slices=True,
        ),
        _table_of_cases(found, shown, slices),
        Section(
            "Grey values",
            "Share of the pixels above 0 with each grey value, one line per case. A line far from the others is a "
            "scan with another contrast or intensity window.",
            figure=figures.grey_values({case.case: [of.image for of in slices[case.case]] for case in shown}),
        ),
        Section(
            "Rejected files",
            "Found by name and size in the whole source, and by content in the cases shown.",
            columns=("file", "reason"),
            table=tuple((file.file, file.reason) for file in (*found.rejected, *rejected)),
        ),
        Section("Files not used", columns=("reason", "files", "examples"), table=tuple(unused)),
    ]
    return render(
        title="Preview of a data set",
        subtitle=f"{config.source}, read as layout {found.layout}, oasisgen {__version__}. Nothing was packed.",
        sections=[section for section in sections if section.table or section.figure],
    )


def _edges(found: Survey, config: PackConfig) -> str:
    """Which side of the head each edge of a slice is, in words, where headers tell it."""
    if found.layout != "volumes":
        return ""
    sides = ", ".join(f"{side} at the {edge}" for edge, side in EDGES[config.axis].items())
    return f"By the headers, slices show the head's {sides}. "


def _legend(found: Survey) -> str:
    """What the colors of the label maps mean, in words."""
    if not found.label_classes:
        return "The slices have no label maps. "
    names = [of.name for of in found.label_classes]
    return f"The row below shows the same slices with their label maps: {legend(names)}. "


def _table_of_cases(found: Survey, shown: Sequence[Case], slices: Read) -> Section:
    """A row per case: what is known of it."""
    names = [covariate.name for covariate in found.covariates]
    rows = []
    for case in shown:
        of = slices[case.case]
        labels = sum(each.labels is not None for each in of)
        values = ["" if (value := case.covariates.get(name)) is None else value for name in names]
        rows.append((case.case, case.subject, case.split, len(of), labels, *values))
    return Section("Cases", columns=("case", "subject", "split", "slices", "with labels", *names), table=tuple(rows))
