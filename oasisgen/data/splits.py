"""The split of every case: from a table, by a hash of its subject, or as the source says. Subjects stay whole."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from oasisgen.config.pack import DEFAULT_SPLIT, PackConfig, shares_of
from oasisgen.data.cases import Case, UnusedFile
from oasisgen.data.names import SPLIT_NAMES
from oasisgen.data.slices import SPLITS
from oasisgen.data.text_tables import Row, TextTable, canonical_number, key_of, keys_of, no_match
from oasisgen.errors import InvalidFile, UserError
from oasisgen.progress import say


def assign_splits(
    config: PackConfig, cases: Sequence[Case], table: TextTable | None
) -> tuple[list[Case], list[UnusedFile]]:
    """The cases with their splits, by split and case, and those that are left out. `table` is that of `--splits`.

    Raises UserError if two cases have the same name, a subject is in two splits, or a table or a hash leaves a split
    empty that training needs.
    """
    cases = _same_names(cases)
    _require_one_folder(cases)
    _require_own_names(cases)
    left_out: list[UnusedFile] = []
    if table:
        cases, left_out = _by_table(cases, table)
        _require_filled(cases, "add subjects of that split to the table")
    elif config.split or not any(case.split for case in cases):
        if not config.split:
            say("pack", f"the source names no splits: --split {DEFAULT_SPLIT} --split-seed {config.split_seed} is used")
        shares = config.split or DEFAULT_SPLIT
        cases = [replace(case, split=split_of(case.subject, shares, config.split_seed)) for case in cases]
        _require_filled(cases, "give --split other shares or --split-seed another seed, or name splits with --splits")
    else:
        if config.split_seed:
            raise UserError(
                f"--split-seed {config.split_seed} is not used, since the source names the splits: leave it out, or "
                f"give --split {DEFAULT_SPLIT}"
            )
        left_out = [
            UnusedFile(case.case, "a case that is in no split of the source") for case in cases if not case.split
        ]
        cases = [case for case in cases if case.split]
        _require_whole_subjects(cases)
    return sorted(cases, key=lambda case: (SPLITS.index(case.split), case.case)), left_out


def split_of(subject: str, shares: str, seed: int) -> str:
    """The split of a subject: a hash of its name and `seed` in [0, 1), placed in the shares of the three splits.

    It does not depend on the other subjects, so a subject stays in its split when others are added.
    """
    digest = hashlib.sha256(f"{seed} {key_of(subject)}".encode()).digest()
    place = int.from_bytes(digest[:8], "big")  # of 2**64
    train, validate, _ = shares_of(shares)
    return next(
        (split for split, end in (("train", train), ("validate", train + validate)) if place < end * 2**64), "test"
    )


def _same_names(cases: Sequence[Case]) -> list[Case]:
    """The cases, with one spelling of a subject's name: subjects 1 and 001 are the same."""
    names: dict[str, str] = {}
    return [replace(case, subject=names.setdefault(canonical_number(case.subject), case.subject)) for case in cases]


def _require_one_folder(cases: Sequence[Case]) -> None:
    """Raise UserError if a case has slices in the folders of two splits."""
    homes: dict[str, Case] = {}
    for case in cases:
        other = homes.setdefault(canonical_number(case.case), case)
        if other.split != case.split:
            raise UserError(
                f"case {case.case} is in {other.split} and in {case.split}: remove it from one of the two folders"
            )


def _require_own_names(cases: Sequence[Case]) -> None:
    """Raise UserError if two cases have the same name: training tells slices apart by case and level."""
    named: dict[str, Case] = {}
    for case in cases:
        if (other := named.setdefault(case.case, case)) is not case:
            raise UserError(
                f"subjects {other.subject} and {case.subject} both have a case {case.case}: rename the files of one, "
                "or name cases by --pattern"
            )


def _require_whole_subjects(cases: Sequence[Case]) -> None:
    """Raise UserError if the source has a subject in two splits."""
    homes: dict[str, Case] = {}
    for case in cases:
        other = homes.setdefault(case.subject, case)
        if other.split != case.split:
            raise UserError(
                f"subject {case.subject} is in {other.split} (case {other.case}) and in {case.split} "
                f"(case {case.case}): move one of the cases, or split by --split or --splits"
            )


def _require_filled(cases: Sequence[Case], fix: str) -> None:
    """Raise UserError if no case is in train, or none in validate."""
    count = Counter(case.split for case in cases)
    for split in ("train", "validate"):
        if not count[split]:
            raise UserError(f"none of {len(cases)} cases is in {split}: {fix}")


def _by_table(cases: Sequence[Case], table: TextTable) -> tuple[list[Case], list[UnusedFile]]:
    """The cases that a table names, with their splits, and the others. Raises InvalidFile if it contradicts itself."""
    rows, column = _rows_by_key(table)
    chosen: dict[str, Row] = {}  # subject -> the first row that names it or one of its cases
    named, left_out = [], []
    for case in cases:
        found = [row for key in keys_of(case) for row in rows.get(key, ())]
        for row in found:
            _require_same_split(table.uri, case.subject, chosen.setdefault(case.subject, row), row, column)
        if found:
            named.append(replace(case, split=SPLIT_NAMES[found[0].values[column].lower()]))
        else:
            left_out.append(UnusedFile(case.case, "a case that the table of --splits does not name"))
    if not named:
        raise no_match(table, cases)
    unknown = list(_unknown(table, cases))
    if unknown:
        say("pack", f"{len(unknown)} rows of {table.uri} name no case of the source: {', '.join(unknown[:3])}")
    return named, left_out


def _rows_by_key(table: TextTable) -> tuple[dict[str, list[Row]], int]:
    """The rows of each subject or case, and the number of the column `split`. Raises InvalidFile for another split."""
    column = table.find("split")
    if column is None:
        raise InvalidFile(f"{table.uri} has no column split: add one with train, validate or test in every row")
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in table.rows:
        if row.values[column].lower() not in SPLIT_NAMES:
            raise InvalidFile(
                f"{table.uri}, line {row.line}: split is {row.values[column]!r}: must be train, validate or test"
            )
        rows[key_of(row.values[table.key])].append(row)
    return rows, column


def _require_same_split(uri: str, subject: str, a: Row, b: Row, column: int) -> None:
    """Raise InvalidFile if two rows of one subject give different splits."""
    if SPLIT_NAMES[a.values[column].lower()] != SPLIT_NAMES[b.values[column].lower()]:
        first, second = sorted((a, b))
        raise InvalidFile(
            f"{uri}: line {first.line} puts subject {subject} in {first.values[column]}, line {second.line} in "
            f"{second.values[column]}: give it one split"
        )


def _unknown(table: TextTable, cases: Sequence[Case]) -> Iterator[str]:
    """Names in a table that no case has."""
    known = {key for case in cases for key in keys_of(case)}
    yield from (name for row in table.rows if key_of(name := row.values[table.key]) not in known)
