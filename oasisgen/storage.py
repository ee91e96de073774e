"""URI -> file system, and the few verbs the project needs. The only module that knows where files live.

A URI is a plain path, `file:///…`, `s3://bucket/…`, or any other scheme that `pyarrow.fs` opens. A file is written
whole or not at all. S3 is set up as everywhere, by AWS's environment variables and credential chain; bulk data goes
through pyarrow, and boto3 does what S3 alone can do.

What storage answers is raised as StorageError, in one line that names the URI and the fix; a missing file is
FileNotFoundError.
"""

import errno
import fcntl
import functools
import hashlib
import json
import mimetypes
import os
import posixpath
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import botocore.exceptions
import pyarrow as pa
from botocore.config import Config
from pyarrow import fs

from oasisgen.errors import InvalidFile, StorageError, UserError

# What a worker on another node must know to open what the driver opens. The values are secrets.
AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
    "AWS_MAX_ATTEMPTS",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)
TEMPORARY = ".oasisgen-tmp"  # ends the names of local files that are being written
ATTEMPTS = 8  # at one request, with growing pauses: a server may be out for half a minute
ADVICE = {  # by S3's error codes, in small letters
    "invalidaccesskeyid": "the server does not know the access key; mend AWS_ACCESS_KEY_ID",
    "signaturedoesnotmatch": "the secret key does not fit the access key; mend AWS_SECRET_ACCESS_KEY",
    "expiredtoken": "the session token has expired; get new credentials",
    "invalidtoken": "the session token is not valid; mend AWS_SESSION_TOKEN",
    "requesttimetooskewed": "the clocks of this machine and of the server differ; set this one",
    "nosuchbucket": "there is no such bucket; create it or mend the URI",
    "accessdenied": "these credentials may not {verb} it; grant them that",
    "networkconnection": "the server does not answer; mend AWS_ENDPOINT_URL or the network",
    "untrusted": "the server's certificate is not trusted; name its authority's in AWS_CA_BUNDLE",
    "slowdown": "the server asks for fewer requests; run the command again later",
    "serviceunavailable": "the server is out of service; run the command again later",
}


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of `uri` and the path in it. Plain paths become absolute."""
    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(Path(uri).expanduser())
    if is_s3(uri):
        bucket, key = _bucket_and_key(uri)
        return _s3(bucket), posixpath.join(bucket, key).rstrip("/")
    try:
        return fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri}: not a URI this program can open ({error}); give a path, file:///… or s3://…") from None


def absolute(uri: str) -> str:
    """`uri` as any process on any node would name it, without a trailing slash."""
    return (uri if "://" in uri else resolve(uri)[1]).rstrip("/")


def real(uri: str) -> str:
    """The one name of the place that `uri` names, links followed: two URIs of one place have the same."""
    system, path = resolve(uri)
    return os.path.realpath(path) if isinstance(system, fs.LocalFileSystem) else f"{system.type_name}:{path}"


def join(uri: str, *names: str) -> str:
    """`uri`/`names`."""
    return posixpath.join(uri, *names)


def exists(uri: str) -> bool:
    """Whether a file or folder lies at `uri`."""
    with _clear_errors(uri, "read"):
        system, path = resolve(uri)
        return system.get_file_info(path).type != fs.FileType.NotFound


def size(uri: str) -> int | None:
    """Bytes of the file at `uri`; None where there is none."""
    with _clear_errors(uri, "read"):
        system, path = resolve(uri)
        return system.get_file_info(path).size


class Listed(NamedTuple):
    """A file as its folder lists it."""

    name: str  # below the folder
    size: int  # bytes
    modified: int  # nanoseconds since 1970


def list_files(uri: str) -> Iterator[tuple[str, int]]:
    """(path below `uri`, bytes) of every file under a folder, in the order of their names.

    Raises FileNotFoundError where there is no such folder.
    """
    yield from (file[:2] for file in list_details(uri))


def list_details(uri: str) -> list[Listed]:
    """Every file under a folder, in the order of their names. Raises as `list_files`."""
    with _clear_errors(uri, "list"):
        system, path = resolve(uri)
        infos = system.get_file_info(fs.FileSelector(path, recursive=True))
    return [
        Listed(info.path[len(path) :].lstrip("/"), info.size, info.mtime_ns or 0)
        for info in sorted((info for info in infos if info.type == fs.FileType.File), key=lambda info: info.path)
        if not info.base_name.endswith(TEMPORARY)  # one in the making is not there yet
    ]


def list_dangling(uri: str) -> list[str]:
    """Links under a folder that lead nowhere, and what else is neither file nor folder; listings leave them out."""
    system, path = resolve(uri)
    if not isinstance(system, fs.LocalFileSystem):
        return []
    paths = (Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names)
    return sorted(str(each.relative_to(path)) for each in paths if not each.is_file())


def list_folders(uri: str) -> list[str]:
    """Names of the folders in a folder, in order; none where it is not there."""
    with _clear_errors(uri, "list"):
        system, path = resolve(uri)
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)


def list_names(uri: str) -> list[str]:
    """Names of what lies directly in a folder, files and folders, in order; none if there is no such folder."""
    with _clear_errors(uri, "list"):
        system, path = resolve(uri)
        return sorted(info.base_name for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    with _clear_errors(uri, "read"):
        system, path = resolve(uri)
        with system.open_input_stream(path) as stream:
            return stream.read()


def read_json(uri: str) -> Any:
    """The JSON file at `uri`. Raises FileNotFoundError, and InvalidFile where it is not JSON."""
    with suppress(ValueError):
        return json.loads(read_bytes(uri))
    try:
        return json.loads(read_bytes(uri))  # one that was replaced while it was read is whole now
    except ValueError:
        raise InvalidFile(f"{uri} is not valid JSON: it is damaged; remove it and run the command again") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write the whole file or nothing: a reader sees the old file, the new one, or none."""
    with _clear_errors(uri, "write"):
        system, path = resolve(uri)
        if isinstance(system, fs.LocalFileSystem):
            with _temporary(Path(path), data) as temporary:
                temporary.replace(path)
        else:  # object stores show an object only once it is complete
            with system.open_output_stream(path) as stream:
                stream.write(data)


def write_text(uri: str, text: str) -> None:
    """UTF-8, whole or not at all."""
    write_bytes(uri, text.encode())


def create(uri: str, data: bytes) -> bool:
    """Write the file unless there is one. Of many callers at once, one is told True, also on S3."""
    return replace(uri, data, None) is not None


def read_tagged(uri: str) -> tuple[bytes, str]:
    """A file and a tag of its bytes, for `replace`. Raises FileNotFoundError."""
    if not is_s3(uri):
        data = read_bytes(uri)
        return data, hashlib.sha256(data).hexdigest()
    with _clear_errors(uri, "read"):
        bucket, key = _bucket_and_key(uri)
        try:
            answer = _boto().get_object(Bucket=bucket, Key=key)
            return answer["Body"].read(), answer["ETag"]
        except botocore.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                raise FileNotFoundError(uri) from None
            raise


def replace(uri: str, data: bytes, tag: str | None) -> str | None:
    """Write the file if it still is what `tag` names, or, with None, if there is none; returns the new tag.

    Returns None, and writes nothing, if the file is another one by now. Of many callers at once with the same tag, one
    is told that it wrote, also on S3. `data` must differ from whatever was written there before.
    """
    with _clear_errors(uri, "write"):
        if not is_s3(uri):
            return _replace_on_disk(Path(resolve(uri)[1]), data, tag)
        bucket, key = _bucket_and_key(uri)
        # Ceph and others know tags without their quotation marks only.
        conditions = [{"IfMatch": tag}, {"IfMatch": tag.strip('"')}] if tag else [{"IfNoneMatch": "*"}]
        for _ in range(ATTEMPTS):
            try:
                return str(_boto().put_object(Bucket=bucket, Key=key, Body=data, **conditions[0])["ETag"])
            except botocore.exceptions.ClientError as error:
                code = error.response["Error"]["Code"]
                if code not in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                    raise
            there, its_tag = _read_tagged_if_any(uri)
            if there == data:  # written by an attempt whose answer was lost
                return its_tag
            if code == "ConditionalRequestConflict":  # at the same time as another write: try again
                continue
            if its_tag != tag or len(conditions) == 1:
                return None
            conditions.pop(0)
        return None


def _read_tagged_if_any(uri: str) -> tuple[bytes | None, str | None]:
    try:
        return read_tagged(uri)
    except FileNotFoundError:
        return None, None


def _replace_on_disk(path: Path, data: bytes, tag: str | None) -> str | None:
    with _temporary(path, data) as temporary:
        if tag is None:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return None
        else:
            with _alone_in(path.parent):
                if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != tag:
                    return None
                temporary.replace(path)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that replace files in `folder` out, where the file system knows locks (flock)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(100):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # not on this file system
                break
        else:
            raise TimeoutError(errno.ETIMEDOUT, "another process does not end its write")
        yield
    finally:
        os.close(handle)


def remove(uri: str) -> None:
    """Remove one file. Raises FileNotFoundError where the file system can tell."""
    with _clear_errors(uri, "delete"):
        system, path = resolve(uri)
        system.delete_file(path)


def link(uri: str, hours: float) -> str:
    """An address that opens a file on S3 for some hours without credentials. Raises UserError for other storage."""
    if not is_s3(uri):
        raise UserError(f"{uri} is not on S3: only there can a file be shared by a link")
    bucket, key = _bucket_and_key(uri)
    with _clear_errors(uri, "share"):
        kind = mimetypes.guess_type(key)[0] or "application/octet-stream"  # a browser would save it, not show it
        parameters = {"Bucket": bucket, "Key": key, "ResponseContentType": kind}
        return _boto().generate_presigned_url("get_object", parameters, ExpiresIn=round(hours * 3600))


def check(uri: str, write: bool) -> None:
    """Raise UserError unless the storage answers and this process may list and read there; `write`: and write, delete.

    `uri` is a folder and need not exist. What is written to see is removed again.
    """
    if is_s3(uri):
        _check_s3(uri, write)
        return
    system, path = resolve(uri)
    if write and isinstance(system, fs.LocalFileSystem):
        home = next(parent for parent in (Path(path), *Path(path).parents) if parent.exists())
        if not (home.is_dir() and os.access(home, os.W_OK | os.X_OK)):
            reason = "may not be written to" if home.is_dir() else "is no folder"
            raise UserError(f"{uri}: {home} {reason}; give another --out, or the right to write there")


def _check_s3(uri: str, write: bool) -> None:
    client = _boto(attempts=2)  # a wrong address should not take half a minute to be told
    bucket, key = _bucket_and_key(uri)
    with _clear_errors(uri, "list"):
        client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    if not write:
        return
    probe = {"Bucket": bucket, "Key": posixpath.join(key, f".check-{uuid.uuid4().hex[:8]}")}
    for verb, call in (
        ("write", functools.partial(client.put_object, Body=b"oasisgen")),
        ("read", client.get_object),
        ("delete", client.delete_object),
    ):
        with _clear_errors(uri, verb):
            call(**probe)


def is_s3(uri: str) -> bool:
    """Whether `uri` is on S3, or on a server that speaks its protocol."""
    return uri.startswith("s3://")


def aws_environment() -> dict[str, str]:
    """The AWS variables of this process. They hold secrets: not for logs, command lines or runtime environments."""
    return {name: os.environ[name] for name in AWS_VARIABLES if name in os.environ}


class _S3(fs.S3FileSystem):  # type: ignore[misc]
    """Travels between processes as "the one your own environment describes": without secrets, and with its retries."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _s3, (self.bucket,)


@functools.cache
def _s3(bucket: str) -> _S3:
    endpoint = _endpoint()
    region = os.environ.get("AWS_REGION") or boto3.Session().region_name
    system = _S3(
        region=region or (None if endpoint else fs.resolve_s3_region(bucket)),
        endpoint_override=endpoint,
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),  # pyarrow does not read this variable itself
        allow_delayed_open=True,  # a small file is one request
        check_directory_existence_before_creation=True,  # rights may begin below the bucket's root
        connect_timeout=10,
        request_timeout=30,
        retry_strategy=fs.AwsStandardS3RetryStrategy(int(os.environ.get("AWS_MAX_ATTEMPTS", ATTEMPTS))),
    )
    system.bucket = bucket
    return system


@functools.cache
def _boto(attempts: int = ATTEMPTS) -> Any:
    _endpoint()
    retries: Any = {"mode": "standard", "max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", attempts))}
    config = Config(retries=retries, connect_timeout=10, read_timeout=30, signature_version="s3v4")
    try:
        return boto3.client("s3", config=config)
    except ValueError as error:  # an address that is none
        raise UserError(f"{error}: mend AWS_ENDPOINT_URL") from None


def _endpoint() -> str | None:
    """The server in the place of AWS, if there is one. Some do not know the trailing checksums of newer clients."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    return endpoint


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri} names no bucket: give s3://bucket/prefix")
    return bucket, key.strip("/")


@contextmanager
def _temporary(target: Path, data: bytes) -> Iterator[Path]:
    """`data` in a file beside `target`, safe on the disk; removed at the end unless it was moved."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _clear_errors(uri: str, verb: str) -> Iterator[None]:
    """What storage answers to `verb`, as a StorageError."""
    try:
        yield
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError):
        raise StorageError(
            f"{uri}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        ) from None
    except botocore.exceptions.SSLError:
        raise StorageError(f"{uri}: {ADVICE['untrusted']}") from None
    except (botocore.exceptions.HTTPClientError, botocore.exceptions.EndpointConnectionError) as error:
        raise StorageError(f"{uri}: {ADVICE['networkconnection']} ({error})") from None
    except botocore.exceptions.BotoCoreError as error:  # a profile that is not there, a region that is none, …
        raise StorageError(f"{uri}: {error}") from None
    except botocore.exceptions.ClientError as error:
        raise StorageError(f"{uri}: {_advice(error.response['Error']['Code'], verb) or error}") from None
    except OSError as error:
        code = re.search(r"AWS Error (\w+)", str(error))  # pyarrow's way of spelling them
        advice = _advice(code[1], verb) if code else None
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not advice:
            raise
        reason = advice or f"cannot {verb}: {error.strerror or error}; free space, or give another place"
        raise StorageError(f"{uri}: {' '.join(reason.split())}") from None


def _advice(code: str, verb: str) -> str | None:
    advice = ADVICE.get(code.replace("_", "").lower())
    return advice and advice.format(verb=verb)
