"""The batches of one root: what each says of itself, and which was released last."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from oasisgen import documents, storage
from oasisgen.errors import InvalidFile
from oasisgen.progress import say

FOLDER = "batches"  # <root>/batches/<name>: nothing is read or written beside a batch that lies elsewhere


# What requests have in common whose measures can be compared.
SAME = ("count", "levels", "ids", "reject", "data_fingerprint", "inception")


def root_of(batch: str) -> str | None:
    """The folder of all batches, if the batch at `batch` lies in one."""
    folder, _, _ = batch.rpartition("/")
    return folder if folder.rpartition("/")[2] == FOLDER else None


def name_of(batch: str) -> str:
    """A batch's name: its path below the folder of all batches, or, outside of one, its whole address."""
    return batch.partition(f"/{FOLDER}/")[2] or batch


def read_batches(root: str) -> list[dict[str, Any]]:
    """What `summary.json` says of each batch that has a manifest, with its `name`, the oldest first.

    A batch whose summary is damaged or of another version is named and left out.
    """

    def read(name: str) -> dict[str, Any] | None:
        if not storage.exists(storage.join(root, name, "manifest.json")):
            return None
        try:
            return documents.read(storage.join(root, name, "summary.json"), documents.Summary) | {"name": name}
        except (FileNotFoundError, InvalidFile) as error:
            say("batches", f"{name} is left out: {error}")
            return None

    with ThreadPoolExecutor(16) as pool:
        batches = [batch for batch in pool.map(read, storage.list_folders(root)) if batch]
    return sorted(batches, key=lambda batch: (batch["finished"], batch["name"]))


def last_released(root: str, request: dict[str, Any], but: str) -> dict[str, Any] | None:
    """What the last released batch that was asked for and measured alike says; None if there is none `but` one."""
    alike = [
        batch
        for batch in read_batches(root)
        if batch["name"] != but
        and batch["verdict"] == "released"
        and all(batch.get(name) == request[name] for name in SAME)
    ]
    return alike[-1] if alike else None
