"""A folder in storage is ours, and its name stands for one configuration."""

import importlib.metadata
import json
from typing import Any

from oasisgen import __version__, documents, storage
from oasisgen.config import renamed
from oasisgen.errors import UserError

# What a slice depends on beside the request it is made for.
SOFTWARE = {"oasisgen": __version__, "torch": importlib.metadata.version("torch")}


MARK = "config.json"  # what makes a folder ours: it is written before anything else


def require_ours(folder: str, *marks: str) -> None:
    """Raise UserError if `folder` holds something and none of `marks`: then its files are somebody else's.

    Names that begin with a dot do not count: operating systems and interrupted writes leave them.
    """
    names = [name for name in storage.list_names(folder) if not name.startswith(".")]
    if names and not set(names) & set(marks):
        raise UserError(f"{folder} holds files that are not ours ({names[0]}): use another --out, or an empty folder")


def write_settings(folder: str, settings: dict[str, Any]) -> None:
    """Write `settings` to the folder's `config.json`, or find the same there. Raises as
    `require_same_settings` does.
    """
    require_same_settings(folder, settings)
    if not storage.create(storage.join(folder, "config.json"), (json.dumps(settings, indent=2) + "\n").encode()):
        require_same_settings(folder, settings)


def require_same_settings(folder: str, settings: dict[str, Any]) -> None:
    """Raise UserError, with both values of each setting, where the folder's name stands for another configuration.

    Also raised for a folder that holds somebody else's files: we write into empty folders and into our own.
    """
    try:
        old = documents.read(storage.join(folder, "config.json"), dict)
    except FileNotFoundError:
        require_ours(folder, MARK)
        return
    if name := renamed.find(old):
        raise UserError(
            f"{folder} was begun by an older version of oasisgen ({name}): finish it with that version, or use "
            "another --out"
        )
    if changed := differences(old, settings):
        raise UserError(f"{folder} exists with other settings ({'; '.join(changed)}): use another --out")


def require_same_software(folder: str) -> None:
    """Raise UserError where the work in `folder` was begun with other versions: a part of it would be of another kind.

    For work that is unfinished, and whose settings hold SOFTWARE as `software`.
    """
    try:
        begun = documents.read(storage.join(folder, MARK), dict).get("software")
    except FileNotFoundError:
        return
    if begun != SOFTWARE:
        was = _in_words(begun) if isinstance(begun, dict) else "a version that did not write down which"
        raise UserError(
            f"{folder} was begun with {was}, this is {_in_words(SOFTWARE)}: go on with the same versions, or use "
            "another --out"
        )


def _in_words(software: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in software.items())


# How a run computes is not what it computes: these may change between two calls of the same run. (Versions may not
# while a batch is unfinished: `require_same_software`.)
_PLACEMENT = (
    "data",  # its fingerprint says whether it is the same
    "software",
    "software.oasisgen",
    "software.torch",
    "out",
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "min_workers",
    "checkpoint_seconds",
    "wait_minutes",
    "dry_run",
)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"vqvae": {"epochs": 5}} -> {"vqvae.epochs": 5}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name: old -> new` for each setting in which two stored configurations compute different things."""
    a, b = flatten(old), flatten(new)
    names = [name for name in sorted(a.keys() | b.keys()) if name not in _PLACEMENT]
    return [f"{name} {a.get(name)} -> {b.get(name)}" for name in names if a.get(name) != b.get(name)]
