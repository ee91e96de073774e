"""Checks of an output folder: oasisgen wrote it, and it holds the work of one configuration only."""

import importlib.metadata
import json
from typing import Any

from oasisgen import __version__, documents, storage
from oasisgen.config import renamed
from oasisgen.errors import UserError

# The versions that a generated slice depends on, besides its request.
SOFTWARE = {"oasisgen": __version__, "torch": importlib.metadata.version("torch")}
MARK = "config.json"  # shows that oasisgen wrote the folder; written before anything else


def require_ours(folder: str, *marks: str) -> None:
    """Raise UserError if `folder` is not empty and has none of `marks`: then oasisgen did not write it.

    Names that start with a dot are ignored: operating systems and interrupted writes leave such files.
    """
    names = [name for name in storage.list_names(folder) if not name.startswith(".")]
    if names and not set(names) & set(marks):
        raise UserError(
            f"{folder} holds files that oasisgen did not write ({names[0]}): use another --out, or an empty folder"
        )


def write_settings(folder: str, settings: dict[str, Any]) -> None:
    """Write `settings` to the folder's `config.json`, unless they are there. Raises as `require_same_settings`."""
    require_same_settings(folder, settings)
    if not storage.create(storage.join(folder, "config.json"), (json.dumps(settings, indent=2) + "\n").encode()):
        require_same_settings(folder, settings)


def require_same_settings(folder: str, settings: dict[str, Any]) -> None:
    """Raise UserError, with both values of each changed setting, if the folder was written with other settings.

    Also raises UserError if the folder is not empty and oasisgen did not write it.
    """
    try:
        old = documents.read(storage.join(folder, "config.json"), dict)
    except FileNotFoundError:
        require_ours(folder, MARK)
        return
    if name := renamed.find(old):
        raise UserError(
            f"{folder} was started by an older version of oasisgen ({name}): finish it with that version, or use "
            "another --out"
        )
    if changed := differences(old, settings):
        raise UserError(f"{folder} exists with other settings ({'; '.join(changed)}): use another --out")


def require_same_software(folder: str) -> None:
    """Raise UserError if the work in `folder` was started with other versions, whose results may differ.

    Call it for unfinished work whose settings hold SOFTWARE as `software`.
    """
    try:
        begun = documents.read(storage.join(folder, MARK), dict).get("software")
    except FileNotFoundError:
        return
    if begun != SOFTWARE:
        was = _in_words(begun) if isinstance(begun, dict) else "a version that did not record its number"
        raise UserError(
            f"{folder} was started with {was}, this is {_in_words(SOFTWARE)}: continue with the same versions, or use "
            "another --out"
        )


def _in_words(software: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in software.items())


# Settings that may change between two calls of the same run, because they do not change its results. (Versions may not
# change while a batch is unfinished: `require_same_software`.)
_PLACEMENT = (
    "data",  # the fingerprint, not the URI, identifies a data set
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

# Settings that runs and bundles of older versions lack, with the values that those had
ADDED: dict[str, Any] = {
    "feed": "memory",
    "labels.subjects": 0,
    "masked.redrawn": 0.0,
    "masked.low_rank_logits": False,
}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"vqvae": {"epochs": 5}} -> {"vqvae.epochs": 5}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`name old -> new` for each setting that differs between two stored configurations and changes the results."""
    b = flatten(new)
    a = {name: value for name, value in ADDED.items() if name in b} | flatten(old)
    names = [name for name in sorted(a.keys() | b.keys()) if name not in _PLACEMENT]
    return [f"{name} {a.get(name)} -> {b.get(name)}" for name in names if a.get(name) != b.get(name)]
