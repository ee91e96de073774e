"""Turn an error of storage into one line that names the address and the fix."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import botocore.exceptions

from oasisgen.errors import StorageError

S3_ADVICE = {  # by S3 error code, in lower case
    "invalidaccesskeyid": "the server does not know the access key; fix AWS_ACCESS_KEY_ID",
    "signaturedoesnotmatch": "the secret key does not match the access key; fix AWS_SECRET_ACCESS_KEY",
    "expiredtoken": "the session token has expired; get new credentials",
    "invalidtoken": "the session token is not valid; fix AWS_SESSION_TOKEN",
    "requesttimetooskewed": "this machine's clock differs from the server's; correct it",
    "nosuchbucket": "there is no such bucket; create it or fix the URI",
    "accessdenied": "these credentials may not {verb} it; grant them the permission",
    "networkconnection": "the server does not answer; check AWS_ENDPOINT_URL and the network",
    "untrusted": "the server's certificate is not trusted; set AWS_CA_BUNDLE to the file of its CA certificate",
    "slowdown": "the server limits the request rate; run the command again later",
    "serviceunavailable": "the server is unavailable; run the command again later",
}
DISK_ADVICE = {  # by errno
    errno.ENOSPC: "free space, or give another place",
    errno.EDQUOT: "free space, or give another place",
    errno.EFBIG: "allow larger files, or give another place",
    errno.EACCES: "get permission to {verb} there, or give another place",
    errno.EPERM: "get permission to {verb} there, or give another place",
    errno.EROFS: "give a writable place",
    errno.ENOTDIR: "a file is in the way: give another place",
    errno.EEXIST: "a file is in the way: give another place",
    errno.EISDIR: "a folder is in the way: give another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its symbolic links form a loop: fix them",
}
AWS_ERROR = re.compile(r"AWS Error (\w+)")  # how pyarrow reports S3 errors


def of_storage(error: Exception) -> bool:
    """Whether an error is one of storage. For a damaged Parquet file, pyarrow raises OSError too, without a number."""
    return isinstance(error, OSError) and bool(error.errno or AWS_ERROR.search(str(error)))


@contextmanager
def one_line(uri: str, verb: str) -> Iterator[None]:
    """Raise errors of storage as StorageError; `verb` says what failed. A missing file stays FileNotFoundError, and
    so does one below a file, unless it is to be written.
    """
    try:
        yield
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError):
        raise StorageError(
            f"{uri}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        ) from None
    except botocore.exceptions.SSLError:
        raise StorageError(f"{uri}: {S3_ADVICE['untrusted']}") from None
    except (botocore.exceptions.HTTPClientError, botocore.exceptions.EndpointConnectionError) as error:
        raise StorageError(f"{uri}: {S3_ADVICE['networkconnection']} ({error})") from None
    except botocore.exceptions.BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from None
    except botocore.exceptions.ClientError as error:
        raise StorageError(f"{uri}: {_of_s3(error.response['Error']['Code'], verb) or error}") from None
    except OSError as error:
        code = AWS_ERROR.search(str(error))
        advice = _of_s3(code[1], verb) if code else None
        if isinstance(error, FileNotFoundError) and not advice:
            raise
        if isinstance(error, NotADirectoryError) and verb != "write":
            raise FileNotFoundError(uri) from None
        reason = advice or f"cannot {verb}: {error.strerror or error}; {_of_disk(error, verb)}"
        raise StorageError(f"{uri}: {' '.join(reason.split())}") from None


def _of_s3(code: str, verb: str) -> str | None:
    advice = S3_ADVICE.get(code.replace("_", "").lower())
    return advice and advice.format(verb=verb)


def _of_disk(error: OSError, verb: str) -> str:
    return DISK_ADVICE.get(error.errno or 0, "run the command again, or give another place").format(verb=verb)
