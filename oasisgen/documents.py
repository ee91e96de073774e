"""Read JSON from storage into records, with every field and its type checked once, at the edge."""

import json
from contextlib import suppress
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from oasisgen import storage
from oasisgen.errors import InvalidFile

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # a file name: no path, no `..`
Path = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
T = TypeVar("T")
Finite = Annotated[float, Field(allow_inf_nan=False)]


def read(uri: str, kind: type[T]) -> T:
    """The JSON file at `uri` as an instance of the frozen dataclass `kind`; fields that `kind` lacks are dropped.

    If `kind` is a typed dictionary, its fields are checked and the whole document is returned. Raises
    FileNotFoundError, and InvalidFile if the file is not JSON, or a field is missing or has the wrong type.
    """
    with suppress(InvalidFile):
        return parse(storage.read_bytes(uri), kind, uri)
    return parse(storage.read_bytes(uri), kind, uri)  # again: it may have been replaced during the first read


def parse(data: bytes, kind: type[T], name: str) -> T:
    """As `read`, for bytes already read; `name` is the file, or the line of a file, that they came from."""
    try:
        record: T = _adapter(cast(Any, kind)).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise InvalidFile(f"{name} is not valid JSON: it is damaged; remove it and run the command again") from None
        where = " ".join(".".join(map(str, first["loc"])).split()) or "the whole file"
        fault = f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise InvalidFile(
            f"{name} is not a file that this program wrote ({fault}): it is damaged; remove it and create it again"
        ) from None
    return record if is_dataclass(kind) else json.loads(data)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
