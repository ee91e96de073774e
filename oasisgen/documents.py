"""JSON from storage, checked where it is read: no field that is used later is missing or of another type."""

import json
from functools import lru_cache
from typing import Annotated, Any, Literal, NotRequired

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
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Shard(TypedDict):
    """A Parquet file of a data set."""

    name: Name
    slices: Count
    bytes: Count
    sha256: str


class Split(TypedDict):
    """One split of a data set."""

    slices: Count
    cases: dict[str, Count]  # case -> slices
    levels: NotRequired[list[Count]]  # which older versions did not write
    parts: list[Shard]


class Rejected(TypedDict):
    """A file that was not packed."""

    file: str
    reason: str


class Named(TypedDict):
    """A slice of a data set."""

    split: Name
    case: str
    level: Count


class Versioned(TypedDict):
    """What every version of `dataset.json` has."""

    schema_version: int


class DataSetFile(TypedDict):
    """`dataset.json`."""

    fingerprint: str
    source: str
    source_fingerprint: str
    splits: dict[Name, Split]
    rejected: list[Rejected]
    blank: NotRequired[list[Named]]
    equal: NotRequired[list[list[Named]]]


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
    seconds: dict[str, Finite]


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


def read(uri: str, kind: type) -> dict[str, Any]:
    """The JSON file at `uri`, of which `kind` names the fields that it must have; it may have more.

    Raises FileNotFoundError, and InvalidFile where it is not JSON or not such a file.
    """
    return require(storage.read_json(uri), kind, uri)


def parse(data: bytes, kind: type, name: str) -> dict[str, Any]:
    """As `read`, for bytes that were read already: those of the file, or of a line of it, `name`."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidFile(f"{name} is not valid JSON: it is damaged; remove it and run the command again") from None
    return require(document, kind, name)


def require(document: Any, kind: type, name: str) -> dict[str, Any]:
    """`document`, as it is. Raises InvalidFile, which says what is wrong, unless it has the fields of `kind`."""
    try:
        _adapter(kind).validate_python(document, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = " ".join(".".join(map(str, first["loc"])).split()) or "the whole"
        fault = f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise InvalidFile(
            f"{name} is not a file that this program wrote ({fault}): it is damaged; remove it and make it again"
        ) from None
    return document


@lru_cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
