import errno
import json
import os
import pickle
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from urllib.request import urlopen

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from oasisgen import documents, storage
from oasisgen.advice import one_line
from oasisgen.data.slices import open_data_set
from oasisgen.errors import StorageError, UserError
from oasisgen.models.bundle import find_bundle
from tests.proxy import proxy


def test_a_file_comes_back_whole(place: str) -> None:
    big = bytes(range(256)) * 30_000  # 7.7 MB: on S3 an upload in parts
    for name, data in (("a/b", b"\x00\xff"), ("a/big", big), ("a/b", b"new")):
        storage.write_bytes(storage.join(place, name), data)
    assert list(storage.list_files(place)) == [("a/b", 3), ("a/big", len(big))]
    assert storage.read_bytes(storage.join(place, "a/b")) == b"new"
    assert storage.read_bytes(storage.join(place, "a/big")) == big
    assert storage.exists(storage.join(place, "a"))
    storage.remove(storage.join(place, "a/b"))
    assert not storage.exists(storage.join(place, "a/b"))


def test_a_missing_file_and_folder_are_file_not_found(place: str) -> None:
    for verb in (storage.read_bytes, storage.remove, lambda uri: list(storage.list_files(uri))):
        with pytest.raises(FileNotFoundError):
            verb(storage.join(place, "none"))


def test_below_a_file_is_nothing_and_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for uri in (f"{tmp_path}/file/x", f"{tmp_path}/file/x/y"):
        for read in (storage.read_bytes, storage.read_json, storage.open_random, storage.read_tagged, storage.remove):
            with pytest.raises(FileNotFoundError):
                read(uri)
        assert not storage.exists(uri)
        assert storage.details(uri) is None
        for write in (storage.write_bytes, storage.create):
            with pytest.raises(UserError, match=r"cannot write: .*; a file is in the way: give another place"):
                write(uri, b"x")
    for folder in (f"{tmp_path}/file", f"{tmp_path}/file/x"):
        with pytest.raises(FileNotFoundError):
            storage.list_details(folder)
        assert storage.list_names(folder) == storage.list_folders(folder) == storage.list_left_out(folder) == []


def test_of_many_who_create_a_file_one_succeeds(place: str) -> None:
    uri = storage.join(place, "claim.json")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: storage.create(uri, str(number).encode()), range(16)))
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == str(won.index(True)).encode()


def test_a_check_leaves_nothing_behind(place: str) -> None:
    storage.check(storage.join(place, "to be made"), write=True)
    assert not storage.exists(storage.join(place, "to be made"))


def test_a_file_system_travels_without_secrets(s3: str) -> None:
    system, path = storage.resolve(s3)
    travelled = pickle.dumps(system)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in travelled
    storage.write_bytes(storage.join(s3, "travels"), b"x")
    assert pickle.loads(travelled).get_file_info(path + "/travels").size == 1


def test_a_folder_is_made_without_touching_those_above_it(s3: str) -> None:
    """Rights may begin below the bucket's root."""
    storage.write_bytes(storage.join(s3, "team/runs/first/config.json"), b"{}")
    system, path = storage.resolve(storage.join(s3, "team/runs/first/vqvae"))
    system.create_dir(path)
    bucket, _, prefix = storage.resolve(s3)[1].partition("/")
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert not [entry["Key"] for entry in listed if entry["Key"].endswith(("team/", "runs/", "first/", f"{prefix}/"))]


def test_a_bucket_that_is_not_there_is_named_whatever_is_looked_for_in_it(s3: str) -> None:
    for read in (open_data_set, find_bundle):
        with pytest.raises(UserError, match="there is no such bucket; create it or fix the URI"):
            read("s3://no-such-bucket-here/runs/first")


def test_a_link_opens_without_credentials(s3: str) -> None:
    storage.write_bytes(storage.join(s3, "report.html"), b"<p>")
    with urlopen(storage.link(storage.join(s3, "report.html"), hours=1)) as answer:
        assert answer.read() == b"<p>"
        assert answer.headers["Content-Type"] == "text/html"  # a browser shows it
    with pytest.raises(UserError, match="is not on S3"):
        storage.link("/tmp/report.html", hours=1)


def said_of(uri: str, **environment: str) -> str:
    """What the check before a job says, in a process with these variables; an empty one is unset."""
    variables = {name: value for name, value in (os.environ | environment).items() if value}
    script = f"""
from oasisgen import documents, storage
from oasisgen.errors import StorageError, UserError
try:
    storage.check({uri!r}, write=True)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def real(s3: str) -> str:
    """An S3 server that looks at credentials and rights."""
    if os.environ["AWS_ACCESS_KEY_ID"] == "moto":
        pytest.skip("moto accepts any key: needs a real S3 server (AWS_ENDPOINT_URL, S3_TEST_BUCKET)")
    return s3


def test_what_is_wrong_with_access_is_one_line(real: str) -> None:
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    keyless = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    for uri, variables, reason in (
        (real, {}, ""),
        (real, {"AWS_ACCESS_KEY_ID": "AKIAWRONG"}, "the server does not know the access key; fix AWS_ACCESS_KEY_ID"),
        (real, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret key does not match the access key; fix AWS_SECRET_"),
        (real, keyless, "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (real, nowhere, "the server does not answer; check AWS_ENDPOINT_URL and the network"),
        ("s3://no-such-bucket-here/run", {}, "there is no such bucket; create it or fix the URI"),
        ("s3:///run", {}, "names no bucket"),
    ):
        said = said_of(uri, **variables)
        assert reason in said
        assert said.startswith(uri if reason else "")
        assert len(said.splitlines()) <= 1


def test_a_bucket_that_may_only_be_read_is_told_before_anything_is_written(real: str) -> None:
    client, bucket = boto3.client("s3"), f"read-only-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))
    try:
        assert (
            said_of(f"s3://{bucket}/run")
            == f"s3://{bucket}/run: these credentials may not write it; grant them the permission"
        )
    finally:
        client.delete_bucket_policy(Bucket=bucket)
        client.delete_bucket(Bucket=bucket)


def test_an_expired_token_is_one_line(s3: str) -> None:
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as fault:
        fault.fault = lambda method, path: "400 ExpiredToken"
        assert said_of(s3, **fault.variables) == f"{s3}: the session token has expired; get new credentials"


@pytest.mark.parametrize("trouble", ["503 SlowDown", "500 InternalError", "slow"])
def test_a_server_in_trouble_for_seconds_is_waited_for(s3: str, trouble: str) -> None:
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as fault:
        fault.for_seconds(3, trouble)
        script = f"""
from oasisgen import documents, storage
uri = {storage.join(s3, trouble.split()[-1])!r}
storage.write_bytes(uri, b"whole")
print(storage.read_bytes(uri), storage.create(uri + ".claim", b"mine"))
"""
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | fault.variables
        )
        assert done.stdout == "b'whole' True\n", done.stderr
        assert fault.faults


def test_an_outage_says_nothing_about_a_file(s3: str) -> None:
    uri = storage.join(s3, "outage.json")
    storage.write_text(uri, json.dumps({"verdict": "released", "format": "png", "parts": []}))
    script = f"""
from oasisgen import documents, storage
for read in (storage.read_json, lambda uri: documents.read(uri, dict)):
    try:
        read({uri!r})
    except Exception as error:
        print(type(error).__name__, error)
"""
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        for fault in ("503 SlowDown", "500 InternalError", "hang up", "cut"):
            server.fault = lambda method, path, fault=fault: fault if "outage.json" in path else None
            once = os.environ | server.variables | {"AWS_MAX_ATTEMPTS": "1"}
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=once)
            assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["StorageError s3"] * 2, (fault, done)
            assert "damaged" not in done.stdout


def certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1 that it has signed itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(signed.public_bytes(Encoding.PEM) + private)
    return folder / "server.pem"


def test_a_server_of_a_private_authority_is_trusted_where_its_certificate_is_named(s3: str, tmp_path: Path) -> None:
    pem, uri = certificate(tmp_path), storage.join(s3, "private")
    with proxy(os.environ["AWS_ENDPOINT_URL"], pem) as server:
        trusting = {**server.variables, "AWS_CA_BUNDLE": str(pem)}
        assert said_of(uri, **trusting) == ""
        script = f"from oasisgen import storage; storage.write_bytes({uri!r}, b'x'); print(storage.read_bytes({uri!r}))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | trusting)
        assert done.stdout == "b'x'\n", done.stderr
        said = "the server's certificate is not trusted; set AWS_CA_BUNDLE to the file of its CA certificate"
        assert said_of(uri, **server.variables) == f"{uri}: {said}"


def test_an_upload_that_is_cut_is_sent_again(s3: str) -> None:
    uri = storage.join(s3, "cut")
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as fault:
        fault.once("hang up", "PUT", "/cut")
        script = f"from oasisgen import storage; storage.write_bytes({uri!r}, bytes(9_000_000))"
        subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | fault.variables)
        assert len(fault.faults) == 1
    assert storage.read_bytes(uri) == bytes(9_000_000)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """The kernel refuses files over 100 bytes, in the middle of the write: what a full disk does."""
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")
    script = f"""
import resource, signal
from oasisgen import documents, storage
from oasisgen.errors import StorageError, UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    storage.write_bytes({str(target)!r}, bytes(1000))
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot write: File too large" in done.stdout
    assert target.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_mount_without_links_keeps_one_creator_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")  # what s3fs and others answer

    monkeypatch.setattr(os, "link", refuse)
    storage.check(str(tmp_path), write=True)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda number: storage.create(f"{tmp_path}/x", str(number).encode()), range(16)))
    assert won.count(True) == 1
    assert storage.read_bytes(f"{tmp_path}/x") == str(won.index(True)).encode()
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_the_advice_fits_what_the_disk_says(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write: File name too long; give a shorter name"):
        storage.write_bytes(f"{tmp_path}/{'x' * 300}", b"")
    with pytest.raises(UserError, match="a file is in the way: give another place"):
        storage.write_bytes(f"{tmp_path}/file/x", b"")
    full = Path("/dev/full")
    with pytest.raises(UserError, match="No space left on device; free space"), one_line(str(full), "write"):
        full.write_bytes(b"x")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        storage.read_json(str(tmp_path / "x.json"))


def test_a_disk_that_cannot_be_read_says_nothing_about_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("x.json")  # for ever
    for read in (storage.read_json, partial(documents.read, kind=dict)):
        with pytest.raises(StorageError, match=r"x\.json: cannot read: .*; its symbolic links form a loop"):
            read(str(tmp_path / "x.json"))


def test_a_relative_path_is_the_same_place_for_every_process() -> None:
    assert storage.absolute("a/../b/") == str(Path.cwd() / "b")
    assert storage.absolute("s3://bucket/run/") == "s3://bucket/run"


def test_a_name_that_ends_in_gz_changes_no_bytes(tmp_path: Path, s3: str) -> None:
    for place in (tmp_path, s3):
        storage.write_bytes(f"{place}/a.nii.gz", b"as they are")
        assert storage.read_bytes(f"{place}/a.nii.gz") == b"as they are"
        assert storage.exists(f"{place}/a.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == b"as they are"
