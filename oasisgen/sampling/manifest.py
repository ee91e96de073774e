"""`manifest.json`: the parts of a batch with their digests. It is written last: if it exists, the batch is complete."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

from oasisgen import storage
from oasisgen.documents import Count, Path
from oasisgen.errors import UserError
from oasisgen.sampling.request import BatchRequest, read_with_request

FILE = "manifest.json"
Verdict = Literal["released", "quarantined"]


@dataclass(frozen=True)
class BatchPart:
    """A part of a batch, as listed in the manifest."""

    name: Path  # of its summary
    slices: Count
    rejected: Count
    sha256: str  # of its summary


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says."""

    verdict: Verdict
    request: BatchRequest
    version: str | None = None
    parts: tuple[BatchPart, ...]

    def to_json(self) -> dict[str, Any]:
        """As the file has it: the fields of the request stand beside the others."""
        return {
            "verdict": self.verdict,
            **self.request.to_json(),
            "version": self.version,
            "parts": [asdict(part) for part in self.parts],
        }


def is_complete(out: str) -> bool:
    """Whether the batch at `out` is finished."""
    return storage.exists(storage.join(out, FILE))


def read_manifest(out: str) -> Manifest:
    """The manifest of the batch at `out`. Raises FileNotFoundError if it is missing, InvalidFile if it is damaged."""
    return read_with_request(storage.join(out, FILE), Manifest)


def digest(out: str) -> str:
    """The sha256 of the manifest of the batch at `out`, which names all its bytes. Raises FileNotFoundError."""
    return hashlib.sha256(storage.read_bytes(storage.join(out, FILE))).hexdigest()


def read_finished(out: str) -> Manifest:
    """As `read_manifest`, but raises UserError if the batch is not finished."""
    try:
        return read_manifest(out)
    except FileNotFoundError:
        storage.check(out, write=False)
        raise UserError(
            f"no finished batch at {out} (manifest.json is missing): run the command that makes it"
        ) from None
