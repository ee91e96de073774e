"""S3, configured like AWS's own tools: environment variables, profiles, roles, proxies, private CAs.

boto3 resolves all of these once, and pyarrow, which moves the data, gets the result. On their own, the two read
different settings, so a job could check one server and work on another.
"""

import functools
import os
import re
import threading
import uuid
from typing import Any

import boto3
import botocore.exceptions
import botocore.session
import botocore.utils
from botocore.config import Config
from pyarrow import fs

from oasisgen import process_state
from oasisgen.address import Address
from oasisgen.advice import one_line
from oasisgen.errors import UserError

# Variables that a worker on another node needs to reach the same S3 as the driver. The values are secrets.
VARIABLES = (
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
KEY_VARIABLES = {  # pyarrow's argument -> variable
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}
CHECKSUMS = {  # servers other than AWS may not know the trailing checksums of newer clients
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
# Held while a client is made: the environment changes for a moment, which no thread may read in between.
_building = threading.RLock()
NOT_MET = ("PreconditionFailed", "412")  # error codes of a conditional write whose condition is false
ATTEMPTS = 8  # per request, with growing pauses: rides out an outage of half a minute
OF_AWS = re.compile(r"https://s3[\w.-]*\.amazonaws\.com(\.cn)?")  # boto3's endpoint if none is configured
# Credentials that pyarrow finds and renews by itself. All other kinds are passed to it with their current values.
RENEWED_BY_PYARROW = ("iam-role", "container-role", "assume-role-with-web-identity")


def session() -> botocore.session.Session:
    """A botocore session with this process's AWS settings. Raises UserError for an unusable variable or profile."""
    for name in ("AWS_PROFILE", "AWS_CA_BUNDLE"):
        if os.environ.get(name, "set").strip() == "":
            raise UserError(f"{name} is blank: give it a value, or unset it")
    found = botocore.session.Session()
    try:
        bundle = found.get_config_variable("ca_bundle")
        found.get_scoped_config()
    except botocore.exceptions.BotoCoreError as error:
        raise UserError(f"{error}: fix AWS_PROFILE, or AWS's configuration file") from None
    if bundle and not os.path.isfile(bundle):
        raise UserError(f"AWS_CA_BUNDLE (or ca_bundle of the profile) names {bundle}, where there is no file")
    _attempts()
    return found


def client(attempts: int = ATTEMPTS) -> Any:
    """boto3's client. Raises as `session`."""
    with _building:
        return _client(attempts)


@functools.cache
def _client(attempts: int) -> Any:
    config = Config(
        retries={"mode": "standard", "max_attempts": _attempts(attempts)},
        connect_timeout=10,
        read_timeout=30,
        signature_version="s3v4",
        request_checksum_calculation="when_required",  # as CHECKSUMS
        response_checksum_validation="when_required",
    )
    found = session()
    try:
        return boto3.Session(botocore_session=found).client("s3", region_name=_region(found), config=config)
    except botocore.exceptions.InvalidRegionError as error:
        raise UserError(f"{error} Fix AWS_REGION") from None
    except botocore.exceptions.BotoCoreError as error:
        raise UserError(f"S3 cannot be set up: {error}") from None
    except ValueError as error:  # an invalid endpoint URL
        raise UserError(f"{error}: fix AWS_ENDPOINT_URL") from None


def file_system(bucket: str) -> fs.S3FileSystem:
    """pyarrow's file system for a bucket, with the same settings as `client`. Raises as `session`."""
    with _building:
        return _file_system(bucket, _keys())


class _S3(fs.S3FileSystem):  # type: ignore[misc]
    """Pickled as its bucket only and rebuilt from the receiver's settings, so that no secrets are sent."""

    def __reduce__(self) -> tuple[Any, ...]:
        return file_system, (self.bucket,)


@functools.cache
def _file_system(bucket: str, keys: tuple[tuple[str, str], ...]) -> _S3:
    found, endpoint = session(), endpoint_url()
    proxies = botocore.utils.get_environ_proxies(client().meta.endpoint_url)
    # pyarrow has no argument for CHECKSUMS: it reads the variables here, once.
    with process_state.environment(CHECKSUMS):
        system = _S3(
            **dict(keys),
            region=_region(found) or (None if endpoint else fs.resolve_s3_region(bucket)),
            endpoint_override=endpoint,
            tls_ca_file_path=found.get_config_variable("ca_bundle"),
            proxy_options=proxies.get(client().meta.endpoint_url.partition(":")[0]),
            allow_delayed_open=True,  # a small file is one request
            check_directory_existence_before_creation=True,  # permissions may cover only a prefix
            connect_timeout=10,
            request_timeout=30,
            retry_strategy=fs.AwsStandardS3RetryStrategy(_attempts()),
        )
    system.bucket = bucket
    return system


def endpoint_url() -> str | None:
    """The URL of an S3 server other than AWS; None for AWS."""
    url = client().meta.endpoint_url
    return None if OF_AWS.fullmatch(url) else url


def environment() -> dict[str, str]:
    """Variables that give a process on another node access to the same S3. They hold secrets: keep them out of logs.

    They include the settings of a profile, whose file exists only on this machine. Temporary keys of a profile (SSO, an
    assumed role) are not renewed there: give the nodes their own role.
    """
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    try:
        found = session()
        if not found.full_config["profiles"]:  # variables only, or a role that every node has
            return variables
        resolved = {
            "AWS_ENDPOINT_URL_S3": endpoint_url(),
            "AWS_REGION": _region(found),
            "AWS_CA_BUNDLE": found.get_config_variable("ca_bundle"),
        }
        resolved |= {KEY_VARIABLES[name]: value for name, value in _keys()}
    except UserError:  # `check` reports it if the job uses S3; other jobs need no working profile
        return variables
    return variables | {name: value for name, value in resolved.items() if value}


def check(uri: str, address: Address, write: bool) -> None:
    """Raise UserError unless the server answers and this process may list (with `write`: also write, read and delete).

    The server must also support conditional writes, or two jobs could lock the same folder.
    """
    asking = client(attempts=2)  # report a wrong address sooner than after half a minute
    with one_line(uri, "list"):
        asking.list_objects_v2(Bucket=address.bucket, Prefix=address.key, MaxKeys=1)
    if not write:
        return
    probe = {"Bucket": address.bucket, "Key": f"{address.key}/.check-{uuid.uuid4().hex[:8]}".lstrip("/")}
    with one_line(uri, "write"):
        asking.put_object(**probe, Body=b"oasisgen")
    try:
        with one_line(uri, "read"):
            asking.get_object(**probe)
        with one_line(uri, "write"):
            for condition in ({"IfNoneMatch": "*"}, {"IfMatch": "another"}):
                if not _refuses(asking, probe, condition):
                    raise UserError(f"{uri}: the server ignores If-None-Match and If-Match: use one that supports them")
    finally:
        with one_line(uri, "delete"):
            asking.delete_object(**probe)


def _refuses(asking: Any, probe: dict[str, str], condition: dict[str, str]) -> bool:
    try:
        asking.put_object(**probe, Body=b"oasisgen", **condition)
    except botocore.exceptions.ClientError as error:
        if error.response["Error"]["Code"] not in NOT_MET:
            raise
        return True
    return False


def _keys() -> tuple[tuple[str, str], ...]:
    """Current credentials for pyarrow; none if it finds and renews them itself."""
    try:
        credentials = _credentials()
        if credentials is None or credentials.method in RENEWED_BY_PYARROW:
            return ()
        now = credentials.get_frozen_credentials()
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise UserError(f"the AWS profile gives no credentials: {' '.join(str(error).split())}") from None
    keys = {"access_key": now.access_key, "secret_key": now.secret_key, "session_token": now.token}
    return tuple((name, value) for name, value in keys.items() if value)


@functools.cache
def _credentials() -> Any:
    """botocore's credentials, which it renews."""
    return session().get_credentials()


def _region(found: botocore.session.Session) -> str | None:
    return os.environ.get("AWS_REGION", "").strip() or found.get_config_variable("region") or None


def _attempts(default: int = ATTEMPTS) -> int:
    text = os.environ.get("AWS_MAX_ATTEMPTS", "").strip() or str(default)
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"AWS_MAX_ATTEMPTS is {text}: must be a number, at least 1")
    return int(text)
