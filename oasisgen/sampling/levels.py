"""Check the requested levels against those of the model and of the data set that the batch is compared with."""

from collections.abc import Collection

from oasisgen.config.ranges import in_ranges
from oasisgen.data.slices import DataSet, open_data_set
from oasisgen.errors import UserError
from oasisgen.models.bundle import Bundle
from oasisgen.progress import say


def require_levels(wanted: list[int], data: DataSet) -> None:
    """Raise UserError if a requested level has no training or no held-out slice to compare with.

    Data sets of older versions do not list their levels; they are not checked.
    """
    train, held_out = (data.split(split).levels for split in ("train", "validate"))
    there = set(wanted if train is None else train) & set(wanted if held_out is None else held_out)
    if lacking := sorted(set(wanted) - there):
        raise UserError(
            f"{data.uri} has no slices of level {in_ranges(lacking)} to compare with: "
            f"give --levels {in_ranges(sorted(there))}, or another data set with --data"
        )


def require_trained_levels(wanted: list[int], bundle: Bundle) -> None:
    """Raise UserError if the model was not trained on a requested level.

    Bundles of older versions do not list the levels, but their data set does. If that cannot be read, or was packed
    again, nothing is checked, and a line says so.
    """
    if not bundle.prior.conditional:
        return
    trained = bundle.described.data
    if (seen := trained.trained_levels) is not None:
        _require(wanted, seen)
        return
    try:
        data = open_data_set(trained.uri)
        reason = "" if data.fingerprint == trained.fingerprint else f"{data.uri} was packed again"
    except UserError as error:
        reason = str(error)
    if reason:
        say("generate", f"cannot check that the model was trained on all requested levels: {reason}")
        return
    there = data.splits["train"].levels if "train" in data.splits else None
    if there is not None:
        _require(wanted, there)


def _require(wanted: list[int], seen: Collection[int]) -> None:
    if lacking := sorted(set(wanted) - set(seen)):
        raise UserError(
            f"the model was trained on no slice of level {in_ranges(lacking)}: give --levels {in_ranges(sorted(seen))}"
        )
