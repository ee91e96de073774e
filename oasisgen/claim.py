"""A folder in storage is ours, and its name stands for one configuration."""

import json
from typing import Any

from oasisgen import documents, storage
from oasisgen.config import differences
from oasisgen.errors import UserError

MARK = "config.json"  # what makes a folder ours: it is written before anything else


def require_ours(folder: str, *marks: str) -> None:
    """Raise UserError if `folder` holds something and none of `marks`: then its files are somebody else's.

    Names that begin with a dot do not count: operating systems and interrupted writes leave them.
    """
    names = [name for name in storage.list_names(folder) if not name.startswith(".")]
    if names and not set(names) & set(marks):
        raise UserError(f"{folder} holds files that are not ours ({names[0]}): use another --out, or an empty folder")


def claim(folder: str, settings: dict[str, Any]) -> None:
    """Write `settings` to the folder's `config.json`, or find the same there. Raises as `require_same` does."""
    require_same(folder, settings)
    if not storage.create(storage.join(folder, "config.json"), (json.dumps(settings, indent=2) + "\n").encode()):
        require_same(folder, settings)


def require_same(folder: str, settings: dict[str, Any]) -> None:
    """Raise UserError, with both values of each setting, where the folder's name stands for another configuration.

    Also raised for a folder that holds somebody else's files: we write into empty folders and into our own.
    """
    try:
        old = documents.read(storage.join(folder, "config.json"), dict)
    except FileNotFoundError:
        require_ours(folder, MARK)
        return
    if changed := differences(old, settings):
        raise UserError(f"{folder} exists with other settings ({'; '.join(changed)}): use another --out")
