"""The batches of one root: the summary of each, and which was released last."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from oasisgen import storage
from oasisgen.errors import StorageError, UserError
from oasisgen.progress import say
from oasisgen.quality.summary import BatchSummary, read_summary
from oasisgen.quality.utility import Utility, find_utility
from oasisgen.sampling.manifest import Verdict, is_complete
from oasisgen.sampling.request import BatchRequest

FOLDER = "batches"  # <root>/batches/<name>: nothing is read or written beside a batch that lies elsewhere

# What two requests must have in common for their measures to be comparable.
SAME = ("count", "levels", "ids", "reject", "data_fingerprint")


def root_of(batch: str) -> str | None:
    """The folder of all batches, if the batch at `batch` lies in one."""
    folder, _, _ = batch.rpartition("/")
    return folder if folder.rpartition("/")[2] == FOLDER else None


def name_of(batch: str) -> str:
    """A batch's name: its path below the folder of all batches, or, outside of one, its whole address."""
    return batch.partition(f"/{FOLDER}/")[2] or batch


@dataclass(frozen=True)
class FinishedBatch:
    """A batch that has a manifest."""

    name: str  # of its folder
    summary: BatchSummary
    utility: Utility | None = None  # what it was probed to be worth; None: it was not probed

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it may not be released: those of its own job, and those of a later probe."""
        return self.summary.reasons + (self.utility.reasons if self.utility else ())

    @property
    def verdict(self) -> Verdict:
        """That of its own job, unless a later probe says otherwise."""
        return "quarantined" if self.utility and self.utility.reasons else self.summary.verdict


def read_batches(root: str, known: Iterable[FinishedBatch] = ()) -> list[FinishedBatch]:
    """The batches of a root that have a manifest, the oldest first.

    One whose summary is damaged or of another version, or whose folder has a name that no batch has, is named and left
    out. The summaries of `known` ones are not read again, but their utility is: a probe may have added it.
    """
    summaries = {batch.name: batch.summary for batch in known}

    def read(name: str) -> FinishedBatch | None:
        uri = storage.join(root, name)
        try:
            if name not in summaries and not is_complete(uri):
                return None
            return FinishedBatch(name, summaries.get(name) or read_summary(uri), find_utility(uri))
        except StorageError:
            raise
        except (FileNotFoundError, UserError) as error:
            say("batches", f"{name} is left out: {error}")
            return None

    with ThreadPoolExecutor(16) as pool:
        batches = [batch for batch in pool.map(read, storage.list_folders(root)) if batch]
    return sorted(batches, key=lambda batch: (batch.summary.finished, batch.name))


def last_released(
    batches: Iterable[FinishedBatch], request: BatchRequest, features: str, but: str
) -> FinishedBatch | None:
    """The last released batch, other than `but`, that can be compared with one of this `request`; None without one.

    The oldest of `batches` comes first. The slices were measured with the same feature network, whose digest is
    `features`. If a newer batch was measured with another network, this prints that it is not compared.
    """
    alike = [
        batch
        for batch in batches
        if batch.name != but
        and batch.verdict == "released"
        and all(getattr(batch.summary.request, name) == getattr(request, name) for name in SAME)
    ]
    same = [batch for batch in alike if batch.summary.features == features]
    if alike and alike[-1] not in same:
        name, other = alike[-1].name, (alike[-1].summary.features or "unknown")[:12]
        say("batches", f"{name} is not compared, though released: another feature network ({other}) measured it")
    return same[-1] if same else None
