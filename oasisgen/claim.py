"""A name in storage stands for one configuration."""

import json
from typing import Any

from oasisgen import storage
from oasisgen.config import differences
from oasisgen.errors import UserError


def claim(folder: str, settings: dict[str, Any]) -> None:
    """Write `settings` to the folder's `config.json`, or find the same there.

    Raises UserError, with both values of each setting, where the name stands for another configuration.
    """
    uri = storage.join(folder, "config.json")
    if not storage.exists(uri):
        storage.write_text(uri, json.dumps(settings, indent=2) + "\n")
        return
    if changed := differences(storage.read_json(uri), settings):
        raise UserError(f"{folder} exists with other settings ({'; '.join(changed)}): use another --out")
