"""What Ray says when something goes wrong, as one line."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray

from oasisgen import cluster, process_state
from oasisgen.errors import UserError
from oasisgen.head import require_ray
from tests.conftest import one_line, run_job, start_job


@ray.remote(num_cpus=0)
class WithoutRights:
    """An actor that storage turns away as it starts, as Ray Train's controller may be."""

    def __init__(self) -> None:
        raise OSError("When creating key 'team/': ACCESS_DENIED")

    def work(self) -> None:
        """Never called."""


@pytest.mark.usefixtures("connected")
def test_an_actor_that_cannot_start_says_why() -> None:
    with pytest.raises(ray.exceptions.ActorDiedError) as died:
        ray.get(WithoutRights.remote().work.remote())  # type: ignore[attr-defined]
    assert cluster._cause(died.value) == "OSError: When creating key 'team/': ACCESS_DENIED"


def test_a_pool_has_no_more_actors_than_its_slices_are_worth(connected: str) -> None:
    few, many = (cluster.pool(cluster.Actors(), slices)["compute"].max_size for slices in (96, 10_000))
    assert few == 1
    assert many == max(1, int((cluster.cpus() - 0.5) / 0.75))


def test_a_job_sets_what_is_not_set_and_what_must_be_so_for_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OURS", "THEIRS", "MUST", "MUST_TOO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("THEIRS", "1")
    monkeypatch.setenv("MUST", "1")
    before = dict(os.environ)
    with process_state.environment({"OURS": "0", "THEIRS": "0"}, {"MUST": "0", "MUST_TOO": "0"}):
        assert [os.environ[name] for name in ("OURS", "THEIRS", "MUST", "MUST_TOO")] == ["0", "1", "0", "0"]
    assert dict(os.environ) == before


def test_a_job_never_lets_ray_unpickle_what_a_file_says_of_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", "1")
    seen = []

    def look() -> None:
        seen.append(os.environ["RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA"])
        raise UserError("seen")

    monkeypatch.setattr(cluster, "require_ray", look)
    with pytest.raises(UserError, match="seen"), cluster.connection():
        pass
    assert seen == ["0"]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of something that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://head:8265", "RAY_ADDRESS=http://head:8265 is for `ray job submit`"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS=ray://127.0.0.1:10001 is for Ray Client, which these jobs do not"),
        ("127.0.0.1:1", r"no Ray at RAY_ADDRESS=127\.0\.0\.1:1 \(nothing answers there\): start Ray there, or"),
        ("[::1]:1", r"no Ray at RAY_ADDRESS=\[::1\]:1 \(nothing answers there\)"),
        ("127.0.0.1:{silent}", "(nothing answers there|something else answers there)"),
        ("nowhere", "no Ray at RAY_ADDRESS=nowhere"),
    ],
)
def test_an_address_without_a_ray_is_one_line_at_once(
    address: str, said: str, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address.format(silent=silent))
    monkeypatch.setattr("oasisgen.head.SECONDS", 2.0)
    with pytest.raises(UserError, match=said) as refused:
        require_ray()
    assert "\n" not in str(refused.value)


def test_the_port_of_another_server_of_rays_is_not_the_heads(connected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_ray()
    raylet = ray.nodes()[0]["NodeManagerPort"]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{raylet}")
    with pytest.raises(UserError, match="something else answers there"):
        require_ray()


def test_a_cluster_that_is_gone_but_noted_is_named_with_the_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "ray_current_cluster"
    note.write_text("127.0.0.1:1")
    with pytest.raises(UserError, match=rf"no Ray at [\d.]+:1, which {note} names .*: remove that file"):
        require_ray()


def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(**_: object) -> None:  # what Ray raises after 30 s on a machine that is too busy
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(UserError, match=r"^Ray did not start on this machine.*timed out during startup.*, try again$"):
        cluster._connect()


STATE = """
import logging, os, signal, sys, warnings
import ray.data
from oasisgen import cluster, process_state

def state():
    context = ray.data.DataContext.get_current()
    levels = [logging.getLogger(name).level for name in ("ray", "ray.data", "ray.train")]
    return {
        "environment": dict(os.environ),
        "levels": levels,
        "warnings": list(warnings.filters),
        "signal": signal.getsignal(signal.SIGTERM),
        "context": {name: str(value) for name, value in vars(context).items()},
    }

def differences(a, b):
    return sorted(name for name in a if a[name] != b[name])

before = state()
try:
    with cluster.connection():
        print(*differences(before, state()))
        if "fail" in sys.argv:
            raise KeyError
except KeyError:
    pass
print(*differences(before, state()))
"""


@pytest.mark.parametrize("ending", ["", "fail"])
def test_a_connection_puts_everything_back_that_it_set(connected: str, ending: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in cluster.DEFAULTS}
    done = subprocess.run(
        [sys.executable, "-c", STATE, ending], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["context environment levels signal warnings", ""], done.stderr


@pytest.mark.parametrize("flags", ["--source raw --out s3://bucket/d", "--source s3://bucket/raw --out d"])
def test_a_submitted_job_refuses_paths_that_lie_in_rays_folder(flags: str, tmp_path: Path) -> None:
    submitted = json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}})
    done = run_job("pack", *flags.split(), RAY_JOB_CONFIG_JSON_ENV_VAR=submitted)
    assert done.returncode == 2
    assert "a submitted job runs in Ray's own folder" in one_line(done.stderr)


class Web(BaseHTTPRequestHandler):
    """Answers as any web server does."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a web server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{web}", "no Ray at RAY_ADDRESS=127.0.0.1:"),
        ("[::1]:6379", "no Ray at RAY_ADDRESS=[::1]:6379 (nothing answers there): start Ray there, or"),
        ("", "which {note} names (nothing answers there): remove that file, or set RAY_ADDRESS=local"),
    ],
)
def test_a_job_that_finds_no_ray_ends_with_one_line_within_30_seconds(
    address: str, said: str, web: int, raw: Path, tmp_path: Path
) -> None:
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    note.write_text("127.0.0.1:1")
    variables = {"RAY_ADDRESS": address.format(web=web), "RAY_TMPDIR": str(tmp_path)}
    job = start_job("pack", "--source", str(raw), "--out", str(tmp_path / "d"), **variables)
    stdout, stderr = job.communicate(timeout=30)
    assert (job.returncode, stdout) == (1, "")
    assert said.format(note=note) in one_line(stderr)


@pytest.mark.slow
def test_an_error_while_a_data_set_is_read_ends_the_job(tmp_path: Path) -> None:
    """The traceback keeps the iterator alive: it used to be closed after Ray was gone, and to wait for ever."""
    job = tmp_path / "job.py"
    job.write_text(
        "import ray.data\n"
        "from oasisgen import cluster\n"
        "def read(batches):\n"
        "    raise KeyError(next(batches)['id'].item(0))\n"
        "with cluster.connection():\n"
        "    slices = ray.data.range(400, override_num_blocks=40).map_batches(lambda batch: batch)\n"
        "    read(iter(slices.iter_batches(batch_size=None)))\n"
    )
    done = subprocess.run([sys.executable, job], capture_output=True, text=True, timeout=120)
    assert "KeyError: 0" in done.stderr
