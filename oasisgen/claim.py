"""A name in storage stands for one configuration."""

import json
from typing import Any

from oasisgen import storage
from oasisgen.config import differences
from oasisgen.errors import UserError


def claim(folder: str, settings: dict[str, Any]) -> None:
    """Write `settings` to the folder's `config.json`, or find the same there. Raises as `require_same` does."""
    if not storage.create(storage.join(folder, "config.json"), (json.dumps(settings, indent=2) + "\n").encode()):
        require_same(folder, settings)


def require_same(folder: str, settings: dict[str, Any]) -> None:
    """Raise UserError, with both values of each setting, where the folder's name stands for another configuration."""
    try:
        old = storage.read_json(storage.join(folder, "config.json"))
    except FileNotFoundError:
        return
    if changed := differences(old, settings):
        raise UserError(f"{folder} exists with other settings ({'; '.join(changed)}): use another --out")
