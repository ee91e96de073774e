"""Covariates: what a table says about the scanned persons, as columns of the data set."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from oasisgen import storage
from oasisgen.config.columns import DEFAULT_COLUMNS, SEX, covariate_name, titles_of
from oasisgen.config.pack import PackConfig
from oasisgen.data.cases import Case, SourceFile, UnusedFile
from oasisgen.data.description import Covariate
from oasisgen.data.text_tables import Row, TextTable, key_of, keys_of, no_match, read_text_table
from oasisgen.errors import InvalidFile, StorageError, UserError
from oasisgen.progress import say

PARTICIPANTS = "participants.tsv"  # of BIDS
MISSING = {"", "n/a", "na", "nan", "null"}  # in lower case
MOST_VALUES = 100  # different texts that `dataset.json` counts one by one
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
Value = float | str | None


class Column(NamedTuple):
    """A column of a table that becomes a covariate."""

    name: str  # of the covariate
    number: int  # of the column
    is_number: bool


class Joined(NamedTuple):
    """Cases with their covariates."""

    cases: list[Case]
    covariates: tuple[Covariate, ...]
    unused: list[UnusedFile]
    sha256: str  # of the table; empty if none was used


def address_of_table(config: PackConfig) -> str:
    """Where the table of covariates is, if there is one."""
    return config.table or storage.join(config.source, PARTICIPANTS)


def add_covariates(config: PackConfig, cases: list[Case], files: Sequence[SourceFile]) -> Joined:
    """The cases with the covariates of `config.table`, or of `participants.tsv` among the source's `files`.

    A `participants.tsv` that was not asked for and cannot be used is listed as unused. Raises as `join_covariates`.
    """
    uri = address_of_table(config)
    if not config.table and PARTICIPANTS not in (file.path for file in files):
        if config.columns is not None:
            raise UserError(f"--columns {config.columns} names columns of no table: give one with --table")
        return Joined(cases, (), [], "")
    try:
        table = read_text_table(uri, "--table")
        joined, covariates = join_covariates(config, cases, table)
    except UserError as error:
        if config.table or config.columns is not None or isinstance(error, StorageError):
            raise
        return Joined(cases, (), [UnusedFile(PARTICIPANTS, str(error))], "")
    if not config.table:
        say("pack", f"{', '.join(of.name for of in covariates)} come from {uri}")
    return Joined(joined, covariates, [], table.sha256)


def join_covariates(
    config: PackConfig, cases: Sequence[Case], table: TextTable
) -> tuple[list[Case], tuple[Covariate, ...]]:
    """The cases with their covariates, and their description for `dataset.json`.

    Raises UserError if a column is missing or has an unusable name, a subject has two rows, or no row names a case.
    """
    columns = _columns(table, config.columns)
    rows = _rows_by_key(table)
    found = [next((rows[key] for key in keys_of(case) if key in rows), None) for case in cases]
    if not any(found):
        raise no_match(table, cases)
    without = list(dict.fromkeys(case.subject for case, row in zip(cases, found, strict=True) if not row))
    if without:
        subjects = len({case.subject for case in cases})
        say("pack", f"{len(without)} of {subjects} subjects have no row in {table.uri}: {', '.join(without[:3])}")
    joined = [
        replace(case, covariates={column.name: _value(column, row) for column in columns})
        for case, row in zip(cases, found, strict=True)
    ]
    return joined, tuple(_describe(column, [case.covariates[column.name] for case in joined]) for column in columns)


def _columns(table: TextTable, wanted: str | None) -> list[Column]:
    """The columns that the user wants, in that order, or the usual ones that the table has."""
    columns = []
    for title in DEFAULT_COLUMNS if wanted is None else titles_of(wanted):
        number = next((at for each in _spellings(title) if (at := table.find(each)) is not None), None)
        if number is not None:
            columns.append(Column(covariate_name(title), number, _is_number(table, number)))
        elif wanted is not None:
            raise UserError(f"{table.uri} has no column {title}: --columns may name {', '.join(table.header)}")
    if not columns:
        raise UserError(
            f"{table.uri} has no column {', '.join(DEFAULT_COLUMNS)}: name others with --columns, out of "
            f"{', '.join(table.header)}"
        )
    return columns


def _spellings(title: str) -> tuple[str, ...]:
    """Names under which a column may stand in a table."""
    return (title, *SEX) if title.lower() in map(str.lower, SEX) else (title,)


def _is_number(table: TextTable, number: int) -> bool:
    """Whether a column has numbers: at least one value, and no other text."""
    values = [row.values[number] for row in table.rows if row.values[number].lower() not in MISSING]
    return bool(values) and all(NUMBER.fullmatch(value) and math.isfinite(float(value)) for value in values)


def _rows_by_key(table: TextTable) -> dict[str, Row]:
    """The row of each subject or case. Raises InvalidFile if one has two rows."""
    rows: dict[str, Row] = {}
    for row in table.rows:
        other = rows.setdefault(key_of(row.values[table.key]), row)
        if other is not row:
            raise InvalidFile(
                f"{table.uri}: lines {other.line} and {row.line} are both of {row.values[table.key]}: remove one, or "
                "name each case in a column case"
            )
    return rows


def _value(column: Column, row: Row | None) -> Value:
    if row is None or (text := row.values[column.number]).lower() in MISSING:
        return None
    return float(text) if column.is_number else text


def _describe(column: Column, values: Sequence[Value]) -> Covariate:
    """What `dataset.json` says of a covariate with these values of the cases."""
    numbers = [value for value in values if isinstance(value, float)]
    texts = Counter(value for value in values if isinstance(value, str))
    return Covariate(
        name=column.name,
        kind="number" if column.is_number else "text",
        missing=sum(value is None for value in values),
        minimum=min(numbers, default=None),
        maximum=max(numbers, default=None),
        values=None if column.is_number or len(texts) > MOST_VALUES else dict(sorted(texts.items())),
    )
