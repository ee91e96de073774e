"""The policies of k8s/iam: enough for the jobs, and no more."""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from oasisgen import storage
from oasisgen.data.slices import DataSet
from tests.conftest import run_job, tiny_flags
from tests.infra.iam import allowed, denials, statements

FOLDERS = ("datasets", "runs", "batches", "evaluations")
READ, WRITE, REMOVE = "s3:GetObject", "s3:PutObject", "s3:DeleteObject"


@pytest.mark.parametrize(
    ("policy", "read", "written"),
    [
        ("train", {"datasets", "runs", "batches", "evaluations"}, {"runs", "evaluations"}),
        ("generate", {"datasets", "runs", "batches", "evaluations"}, {"batches"}),
    ],
)
def test_each_job_writes_its_own_folders_alone(policy: str, read: set[str], written: set[str]) -> None:
    def may(action: str) -> set[str]:
        return {each for each in FOLDERS if allowed(policy, action, f"arn:aws:s3:::bucket/{each}/name/file")}

    assert may(READ) == read
    assert may(WRITE) == may(REMOVE) == may("s3:AbortMultipartUpload") == written
    features = "arn:aws:s3:::bucket/datasets/name/features/file"  # the first run on a data set keeps its network there
    assert allowed(policy, WRITE, features) == allowed(policy, REMOVE, features) == (policy == "train")
    assert allowed(policy, WRITE, "arn:aws:s3:::bucket/batches/index.html")  # a probe is shown there
    assert allowed(policy, "s3:ListBucket", "arn:aws:s3:::bucket")
    assert not allowed(policy, WRITE, "arn:aws:s3:::bucket/elsewhere")
    assert not allowed(policy, "s3:PutBucketPolicy", "arn:aws:s3:::bucket")
    assert "*" not in "".join(action for each in statements(policy) for action in each["Action"])


def test_a_probe_writes_its_own_folder_and_the_page_of_all_batches_but_no_batch() -> None:
    probe = "arn:aws:s3:::bucket/evaluations/night"
    for file in ("config.json", "lock.json", "real/segmenter/checkpoint_0/state.pt", "few-both/scores.parquet"):
        assert allowed("train", WRITE, f"{probe}/{file}")
        assert allowed("train", REMOVE, f"{probe}/{file}")
    for file in ("utility.json", "report/index.html"):
        assert allowed("train", WRITE, f"{probe}/{file}")
    for file in ("manifest.json", "summary.json", "slices/0/0000000000.png", "labels/0/0000000000.png"):
        assert allowed("train", READ, f"arn:aws:s3:::bucket/batches/night/{file}")
        assert not allowed("train", WRITE, f"arn:aws:s3:::bucket/batches/night/{file}")
    assert not allowed("train", REMOVE, "arn:aws:s3:::bucket/batches/index.html")


@pytest.fixture
def bucket(s3: str) -> Iterator[str]:
    """A bucket of our own on a server that enforces its policy."""
    if os.environ["AWS_ACCESS_KEY_ID"] == "moto":
        pytest.skip("moto enforces no rights: needs a real S3 server (AWS_ENDPOINT_URL, S3_TEST_BUCKET)")
    client, name = boto3.client("s3"), f"rights-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    yield name
    system, path = storage.resolve(f"s3://{name}")
    system.delete_dir_contents(path)
    client.delete_bucket(Bucket=name)


@contextmanager
def limited(bucket: str, policy: str) -> Iterator[Callable[[str, str], bool]]:
    """The bucket, for the holder of that policy; a function that tells whether an action on a key is let through."""
    client = boto3.client("s3")
    rules = {"Version": "2012-10-17", "Statement": denials(policy, bucket)}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(rules))

    def may(action: str, key: str) -> bool:
        call = {READ: client.get_object, WRITE: client.put_object, REMOVE: client.delete_object}[action]
        try:
            call(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] != "AccessDenied":
                raise
            return False
        return True

    try:
        yield may
    finally:
        client.delete_bucket_policy(Bucket=bucket)


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())


@pytest.mark.infra
def test_a_night_works_with_its_policy_and_cannot_touch_the_run(bucket: str, trained: Path) -> None:
    root = f"s3://{bucket}"
    upload(trained / "model", f"{root}/runs/first/model")
    with limited(bucket, "generate") as may:
        done = run_job("generate", "--model", f"{root}/runs/first", "--out", f"{root}/batches/night", "--count", "4")
        assert done.returncode == 3, done.stderr  # whole, and quarantined
        assert may(READ, "batches/night/manifest.json")
        assert may(READ, "batches/index.html")
        assert may(READ, "runs/first/model/config.json")
        assert not may(WRITE, "runs/first/model/config.json")
        assert not may(REMOVE, "runs/first/model/config.json")
        assert not may(WRITE, "datasets/first/dataset.json")


@pytest.mark.infra
def test_training_works_with_its_policy_and_cannot_touch_the_data(bucket: str, data: DataSet) -> None:
    root = f"s3://{bucket}"
    packed = Path(data.uri.removeprefix("file://"))
    upload(packed, f"{root}/datasets/phantom")
    for path in (packed / "features").glob("*"):
        storage.remove(f"{root}/datasets/phantom/features/{path.name}")
    with limited(bucket, "train") as may:
        done = run_job("train", *tiny_flags(f"{root}/datasets/phantom", f"{root}/runs/first"))
        assert done.returncode == 0, done.stderr
        assert "is kept for all runs of this data set" in done.stdout
        assert may(READ, "runs/first/model/config.json")
        assert not may(WRITE, "datasets/phantom/dataset.json")
        assert not may(REMOVE, "datasets/phantom/dataset.json")
        assert not may(WRITE, "batches/night/manifest.json")
