"""Parse URIs: every address that a job takes goes through this parser."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from oasisgen.errors import UserError

KNOWN = "give a path, file:///folder or s3://bucket/prefix"


@dataclass(frozen=True)
class Address:
    """A place on disk, or on S3."""

    path: str  # absolute; on S3: bucket/key
    bucket: str = ""  # empty on disk

    @property
    def key(self) -> str:
        """The name of an object in its bucket."""
        return self.path.removeprefix(self.bucket).lstrip("/")

    def __str__(self) -> str:
        return f"s3://{self.path}" if self.bucket else self.path


def parse(uri: str) -> Address:
    """Parse `uri`. Raises UserError if it is not a valid address.

    Two URIs of one place on S3 have equal addresses. On disk, symbolic links are not followed.
    """
    if not uri.strip() or not uri.isprintable():
        raise UserError(f"{uri!r} is not a valid address: {KNOWN}")
    scheme, mark, rest = uri.partition("://")
    if not mark:
        if re.match(r"(s3a?|file|gs|https?):", uri):
            raise UserError(f"{uri}: // is missing after the first colon: {KNOWN}")
        return Address(os.path.abspath(_at_home(uri)))
    if scheme == "file":
        return _on_disk(uri)
    if scheme != "s3":
        raise UserError(f"{uri}: {scheme}:// is not supported: {KNOWN}")
    return _on_s3(uri, rest)


def _at_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: {path.partition('/')[0]} names no user's home: {KNOWN}") from None


def _on_disk(uri: str) -> Address:
    try:
        parts = urlsplit(uri)
        path = unquote(parts.path, errors="strict")
    except ValueError:
        raise UserError(f"{uri} is not a valid address: {KNOWN}") from None
    if parts.query or parts.fragment or uri.endswith(("?", "#")):
        raise UserError(f"{uri}: a file:// address cannot contain ? or #: give the plain path instead")
    if parts.netloc not in ("", "localhost") or not path:
        raise UserError(f"{uri} names another machine: give file:///folder, with three slashes, or a path")
    if not path.isprintable():
        raise UserError(f"{uri} is not a valid address: {KNOWN}")
    return Address(os.path.abspath(path))


def _on_s3(uri: str, rest: str) -> Address:
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UserError(f"{uri} names no bucket: give s3://bucket/prefix")
    if not re.fullmatch(r"[\w.-]{3,255}", bucket, re.ASCII):
        raise UserError(f"{uri}: {bucket} is not a valid bucket name: give s3://bucket/prefix, without keys or ports")
    if "?" in key:
        raise UserError(f"{uri}: options after ? are not supported: set AWS_REGION or AWS_ENDPOINT_URL instead")
    names = key.rstrip("/").split("/") if key.strip("/") else []
    if {"", ".", ".."} & set(names):
        raise UserError(f"{uri}: names between slashes cannot be empty, . or ..: give the full prefix")
    return Address("/".join([bucket, *names]), bucket)
