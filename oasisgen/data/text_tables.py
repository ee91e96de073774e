"""Tables about subjects or cases, as CSV or TSV, and the names by which their rows are found."""

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from oasisgen import storage
from oasisgen.data.cases import Case
from oasisgen.errors import InvalidFile, UserError

MOST_BYTES = 16 * 2**20  # of a table
KEYS = ("case", "case_id", "scan_id", "participant_id", "subject", "subject_id", "ixi_id", "ptid", "id")
"""Columns that name a subject or a case, in lower case; the first that a table has is used."""
DELIMITERS = "\t,;"


class Row(NamedTuple):
    """A row of a table."""

    line: int  # in the file, from 1
    values: list[str]


@dataclass(frozen=True)
class TextTable:
    """A table with a row per subject or case."""

    uri: str
    header: list[str]
    rows: list[Row]
    sha256: str

    @property
    def key(self) -> int:
        """Number of the column that names the subject or case. Raises InvalidFile if there is none."""
        for name in KEYS:
            if (column := self.find(name)) is not None:
                return column
        raise InvalidFile(f"{self.uri} has no column that names the subject: call it one of {', '.join(KEYS)}")

    def find(self, name: str) -> int | None:
        """Number of the column `name`, spelled the same or else with other capitals; None if there is none.

        Raises InvalidFile if two columns fit equally well.
        """
        same = [number for number, title in enumerate(self.header) if title == name]
        found = same or [number for number, title in enumerate(self.header) if title.lower() == name.lower()]
        if len(found) > 1:
            raise InvalidFile(f"{self.uri} has {len(found)} columns {self.header[found[0]]}: rename or remove one")
        return found[0] if found else None


def read_text_table(uri: str, flag: str) -> TextTable:
    """The CSV or TSV file at `uri`, whose address `flag` gave.

    Raises UserError if it is missing, and InvalidFile if it is too large, not UTF-8 text, or no table.
    """
    try:
        data = storage.read_bytes(uri, MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"no file at {uri}: give {flag} the address of a CSV or TSV file") from None
    if len(data) > MOST_BYTES:
        raise InvalidFile(f"{uri} has more than {MOST_BYTES} bytes: it must be a table with a row per subject")
    header, *rows = _parse(uri, _decode(uri, data))
    for line, values in rows:
        if len(values) != len(header.values):
            raise InvalidFile(f"{uri}, line {line}: {len(values)} values, the header has {len(header.values)}: fix it")
    if not rows:
        raise InvalidFile(f"{uri} has a header, but no rows: add a row per subject")
    return TextTable(uri, header.values, rows, hashlib.sha256(data).hexdigest())


def _decode(uri: str, data: bytes) -> str:
    """The text of a table. Raises InvalidFile if it is something else."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidFile(f"{uri}, line {line}: not UTF-8 text: save the table as CSV with encoding UTF-8") from None
    if "\0" in text:
        raise InvalidFile(f"{uri} is not text: save the table as CSV with encoding UTF-8")
    return text


def _parse(uri: str, text: str) -> list[Row]:
    """The rows of a table, header first, without spaces around values and without empty lines."""
    head = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [
            Row(reader.line_num, [value.strip() for value in values])
            for values in reader
            if any(map(str.strip, values))
        ]
    except csv.Error as error:
        raise InvalidFile(f"{uri}, line {reader.line_num}: {error}: fix it") from None
    if not rows:
        raise InvalidFile(f"{uri} is empty: it must have a header and a row per subject")
    return rows


def canonical_number(name: str) -> str:
    """`name`, without leading zeros if it is a number: 1 and 001 are the same."""
    return (name.lstrip("0") or "0") if re.fullmatch(r"[0-9]+", name) else name


def key_of(name: str) -> str:
    """What different spellings of a subject's or case's name have in common.

    `012` is `sub-012` in BIDS, `OAS1_0012` and its first scan `OAS1_0012_MR1` in OASIS-1, and `IXI012` in IXI.
    """
    if match := re.fullmatch(r"(?:sub-|OAS1_|IXI)?(?P<number>[0-9]+)(?:(?<=OAS1_[0-9]{4})_MR1)?", name):
        return canonical_number(match["number"])
    return name.removeprefix("sub-")


def keys_of(case: Case) -> Iterator[str]:
    """The keys by which a case is found in a table, the most specific first."""
    yield from dict.fromkeys([key_of(case.case), key_of(case.subject)])


def no_match(table: TextTable, cases: Sequence[Case]) -> UserError:
    """The error for a table in which none of the cases is found, with an example of both."""
    of = cases[0]
    case = f"case {of.case}" if of.case == of.subject else f"case {of.case} of subject {of.subject}"
    return UserError(
        f"no row of {table.uri} names a case of the source: its line {table.rows[0].line} names "
        f"{table.rows[0].values[table.key]}, the source has {case}"
    )
