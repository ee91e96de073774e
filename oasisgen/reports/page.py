"""The HTML page of a report: a single, self-contained file."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from oasisgen.metrics.bootstrap import Interval


class Picture(NamedTuple):
    """An image and its caption."""

    source: str  # data URI
    caption: str
    key: str  # what a section filters by


@dataclass(frozen=True)
class Section:
    """A heading with text, code, a table, a figure, pictures, or several of them."""

    heading: str
    text: str = ""
    code: str = ""
    columns: tuple[str, ...] = ()
    table: tuple[tuple[Any, ...], ...] = ()
    figure: str = ""
    slices: bool = False  # the figure is a montage: as wide as the page
    pictures: tuple[Picture, ...] = ()
    filter: str = ""  # name of the pictures' keys, if the page can filter by them


def render(template: str = "report.html", **content: Any) -> bytes:
    """Render a page: a single, self-contained file."""
    loader = jinja2.PackageLoader("oasisgen.reports", "pages")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(content).encode()


def interval(value: Interval, digits: int = 4) -> str:
    """`0.9630 (0.9611 to 0.9648)`."""
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"
