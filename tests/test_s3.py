"""boto3 and pyarrow go to the same server with the same settings, whatever says which."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from oasisgen import storage
from tests.proxy import Proxy, proxy
from tests.test_storage import certificate

# Both clients write and read: `check` and `replace` are boto3's, the rest is pyarrow's.
USE = """
import sys
from oasisgen import s3, storage
from oasisgen.errors import UserError
uri = sys.argv[1]
try:
    storage.check(uri, write=True)
    storage.create(uri + "/boto", b"1")
    storage.write_bytes(uri + "/arrow", b"2")
    print(storage.read_bytes(uri + "/boto"), storage.read_tagged(uri + "/arrow")[0])
except UserError as error:
    print("UserError", error)
"""
FROM_OUTSIDE = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_PROFILE",
    "AWS_CA_BUNDLE",
)


def use(uri: str, without: tuple[str, ...] = (), code: str = USE, /, **variables: str) -> str:
    """What a process with other variables prints."""
    environment = {name: value for name, value in os.environ.items() if name not in without} | variables
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def went_through(server: Proxy) -> set[str]:
    """Which of the two files requests were made for."""
    return {part for part in ("boto", "arrow") for fault in server.faults if f"/{part}" in fault.split("?")[0]}


@pytest.fixture
def uri(s3: str) -> str:
    return storage.join(s3, uuid.uuid4().hex[:8])


def profile(folder: Path, config: str) -> dict[str, str]:
    """Variables of a process that has only the profile `ours`, with the credentials of this one."""
    keys = f"aws_access_key_id = {os.environ['AWS_ACCESS_KEY_ID']}\n"
    keys += f"aws_secret_access_key = {os.environ['AWS_SECRET_ACCESS_KEY']}\n"
    (folder / "config").write_text(config)
    (folder / "credentials").write_text(f"[ours]\n{keys}")
    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    return {"AWS_PROFILE": "ours"} | {name: str(folder / file) for name, file in files.items()}


@pytest.mark.parametrize(
    "config",
    [
        "[profile ours]\nregion = us-east-1\nendpoint_url = {url}\n",
        "[profile ours]\nregion = us-east-1\nservices = here\n[services here]\ns3 =\n  endpoint_url = {url}\n",
    ],
)
def test_both_clients_take_server_region_and_keys_from_a_profile(config: str, uri: str, tmp_path: Path) -> None:
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        server.fault = lambda method, path: "seen"
        variables = profile(tmp_path, config.format(url=server.url))
        assert use(uri, FROM_OUTSIDE, **variables) == "b'1' b'2'"
        assert went_through(server) == {"boto", "arrow"}


def test_workers_elsewhere_get_what_a_profile_says(uri: str, tmp_path: Path) -> None:
    config = f"[profile ours]\nregion = us-east-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n"
    code = "import json; from oasisgen import s3; print(json.dumps(s3.environment()))"
    variables = json.loads(use(uri, FROM_OUTSIDE, code, **profile(tmp_path, config)))
    assert variables["AWS_ENDPOINT_URL_S3"] == os.environ["AWS_ENDPOINT_URL"]
    assert variables["AWS_SECRET_ACCESS_KEY"] == os.environ["AWS_SECRET_ACCESS_KEY"]
    assert use(uri, (*FROM_OUTSIDE, "AWS_DEFAULT_REGION"), **variables) == "b'1' b'2'"


def test_both_clients_trust_the_authority_that_a_profile_names(uri: str, tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    with proxy(os.environ["AWS_ENDPOINT_URL"], pem) as server:
        server.fault = lambda method, path: "seen"
        config = f"[profile ours]\nregion = us-east-1\nendpoint_url = {server.url}\nca_bundle = {pem}\n"
        variables = profile(tmp_path, config)
        assert use(uri, FROM_OUTSIDE, **variables) == "b'1' b'2'"
        assert went_through(server) == {"boto", "arrow"}
        code = "import json; from oasisgen import s3; print(json.dumps(s3.environment()))"
        assert json.loads(use(uri, FROM_OUTSIDE, code, **variables))["AWS_CA_BUNDLE"] == str(pem)


def test_both_clients_go_through_the_proxy_that_the_environment_names_and_round_it(uri: str) -> None:
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        server.fault = lambda method, path: "seen"
        assert use(uri, HTTP_PROXY=server.url, http_proxy=server.url, NO_PROXY="", no_proxy="") == "b'1' b'2'"
        assert went_through(server) == {"boto", "arrow"}
        server.faults.clear()
        assert use(f"{uri}x", HTTP_PROXY=server.url, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1") == "b'1' b'2'"
        assert not server.faults


@pytest.mark.parametrize("call", ["create", "write_bytes"])  # boto3's, and pyarrow's
def test_each_client_goes_through_the_https_proxy_that_the_environment_names_and_round_it(
    call: str, uri: str, tmp_path: Path
) -> None:
    code = f"import sys; from oasisgen import storage; storage.{call}(sys.argv[1] + '/file', b'1'); print('written')"
    pem = certificate(tmp_path)
    with proxy(os.environ["AWS_ENDPOINT_URL"], pem) as server, proxy("http://nowhere") as tunnel:
        variables = {**server.variables, "AWS_CA_BUNDLE": str(pem), "HTTPS_PROXY": tunnel.url, "NO_PROXY": ""}
        assert use(uri, (), code, **variables, no_proxy="") == "written"
        assert set(tunnel.faults) == {f"CONNECT {server.url.removeprefix('https://')}"}
        tunnel.faults.clear()
        assert use(f"{uri}x", (), code, **variables | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}) == "written"
        assert not tunnel.faults


def test_many_threads_open_their_first_buckets_at_once(uri: str) -> None:
    """Opening one changes the environment for a moment: threads that read it meanwhile failed with a KeyError."""
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from oasisgen import s3
sys.setswitchinterval(1e-6)  # threads take turns all the time
s3.client()
with ThreadPoolExecutor(8) as pool:
    print(len(list(pool.map(lambda number: s3.file_system(f"bucket-{number}"), range(400)))))
"""
    assert use(uri, (), code) == "400"


def test_opening_a_bucket_leaves_the_environment_as_it_was_and_sends_no_trailing_checksums(uri: str) -> None:
    code = f"import os\nbefore = dict(os.environ)\n{USE}\nprint(dict(os.environ) == before)"
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        assert use(uri, (), code, **server.variables) == "b'1' b'2'\nTrue"
        assert server.trailers == []


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"AWS_PROFILE": ""}, "AWS_PROFILE is blank: give it a value, or unset it"),
        ({"AWS_CA_BUNDLE": " "}, "AWS_CA_BUNDLE is blank: give it a value, or unset it"),
        ({"AWS_PROFILE": "nobody"}, "(nobody) could not be found: fix AWS_PROFILE"),
        ({"AWS_MAX_ATTEMPTS": "many"}, "AWS_MAX_ATTEMPTS is many: must be a number, at least 1"),
        ({"AWS_MAX_ATTEMPTS": "0"}, "AWS_MAX_ATTEMPTS is 0: must be a number, at least 1"),
        ({"AWS_CA_BUNDLE": "/nowhere.pem"}, "names /nowhere.pem, where there is no file"),
        ({"AWS_REGION": "no region!"}, "Fix AWS_REGION"),
        ({"AWS_ENDPOINT_URL_S3": "no address"}, "fix AWS_ENDPOINT_URL"),
    ],
)
def test_a_variable_that_is_wrong_is_one_line(variables: dict[str, str], reason: str, uri: str) -> None:
    said = use(uri, **variables)
    assert said.startswith("UserError")
    assert reason in said
    assert len(said.splitlines()) == 1


def test_a_variable_that_is_blank_is_as_if_it_were_not_there(uri: str) -> None:
    blank = dict.fromkeys(("AWS_MAX_ATTEMPTS", "AWS_REGION", "AWS_SESSION_TOKEN"), "")
    assert use(uri, **blank) == "b'1' b'2'"


def test_a_server_that_ignores_conditions_is_refused_and_nothing_is_left(uri: str) -> None:
    with proxy(os.environ["AWS_ENDPOINT_URL"]) as server:
        puts: list[str] = []

        def ignore(method: str, path: str) -> str | None:
            puts.extend([path] if method == "PUT" else [])
            return "200 OK" if method == "PUT" and len(puts) > 1 else None

        server.fault = ignore
        assert "the server ignores If-None-Match and If-Match" in use(uri, **server.variables)
    assert list(storage.list_names(uri)) == []
