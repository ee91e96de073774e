"""JSON from storage, checked where it is read: no field that is used later is missing or of another type."""

import json
from contextlib import suppress
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, NotRequired, TypeVar, cast

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from oasisgen import storage
from oasisgen.config.generate import Format
from oasisgen.errors import InvalidFile

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]  # of a file: no path, no `..`
Path = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Verdict = Literal["released", "quarantined"]
T = TypeVar("T")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class CodeMaps(TypedDict):
    """A Parquet file of code maps."""

    name: Name
    maps: Count
    sha256: str


class CodesFile(TypedDict):
    """`codes/<split>.json` of a run."""

    data: str
    vqvae: str
    parts: list[CodeMaps]


class Measure(TypedDict):
    """A number of a batch beside the same of real slices."""

    value: Finite
    floor: Finite


class Seconds(TypedDict):
    """How long each step of a batch took."""

    slices: Finite


class Summary(TypedDict):
    """`summary.json` of a batch: what its page, the page of all batches and the next batch's verdict rest on."""

    verdict: Verdict
    reasons: list[str]
    measures: dict[str, Measure]
    slices: Count
    rejected: Count
    model: str
    base_seed: Seed
    finished: str
    seconds: Seconds


class Part(TypedDict):
    """What a manifest says of a part."""

    name: Path
    slices: Count
    rejected: Count
    sha256: str


class Manifest(TypedDict):
    """`manifest.json` of a batch."""

    verdict: Verdict
    format: Format
    parts: list[Part]


class Interval(TypedDict):
    """A mean with its 95 % interval."""

    mean: Finite
    low: Finite
    high: Finite


class Evaluation(TypedDict):
    """`evaluation.json`."""

    slices: Count
    cases: Count
    ssim: Interval
    psnr_db: Interval
    codes_in_use: Count
    codes_in_use_percent: Finite
    perplexity: Finite


class Epoch(TypedDict):
    """A line of `metrics/<stage>.jsonl`; it has metrics too."""

    epoch: Count
    step: Count


class TrainedOn(TypedDict):
    """The data set of a model."""

    uri: str
    fingerprint: str


class BundleFile(TypedDict):
    """`config.json` of a bundle."""

    data: TrainedOn
    files: dict[Name, str]  # -> sha256
    vqvae: dict[str, Any]
    prior: NotRequired[str]


def read(uri: str, kind: type[T]) -> T:
    """The JSON file at `uri`, as an instance of the frozen dataclass `kind`; fields that `kind` lacks are left out.

    Raises FileNotFoundError, and InvalidFile where it is not JSON, or a field is missing or has another type.
    """
    with suppress(InvalidFile):
        return parse(storage.read_bytes(uri), kind, uri)
    return parse(storage.read_bytes(uri), kind, uri)  # a file that was replaced while it was read is whole now


def parse(data: bytes, kind: type[T], name: str) -> T:
    """As `read`, for bytes that were read already: those of the file `name`, or of a line of it."""
    try:
        record: T = _adapter(cast(Any, kind)).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise InvalidFile(f"{name} is not valid JSON: it is damaged; remove it and run the command again") from None
        where = " ".join(".".join(map(str, first["loc"])).split()) or "the whole"
        fault = f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise InvalidFile(
            f"{name} is not a file that this program wrote ({fault}): it is damaged; remove it and make it again"
        ) from None
    return record if is_dataclass(kind) else json.loads(data)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
