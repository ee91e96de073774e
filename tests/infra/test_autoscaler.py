"""A job that waits for room is seen by Ray's autoscaler, whose provider for tests starts real nodes on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import ray

from oasisgen import cluster
from oasisgen.errors import UserError

pytestmark = [pytest.mark.infra, pytest.mark.timeout(300)]

PORT = 6379  # the only one that this provider's nodes look at
UNUSED = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"),
)
CONFIG = {
    "cluster_name": "test",
    "max_workers": 1,
    "idle_timeout_minutes": 5,
    "provider": {"type": "fake_multinode"},
    "auth": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 1},
    },
    **{name: [] for name in UNUSED},
}


def test_waiting_starts_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with TemporaryDirectory(prefix="auto", dir="/tmp") as folder:  # sockets lie in it, so its path is short
        (Path(folder) / "cluster.yaml").write_text(json.dumps(CONFIG))
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={PORT}"]
        command += ["--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"]
        command += [f"--autoscaling-config={folder}/cluster.yaml"]
        fast = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        head = subprocess.Popen(command, env=os.environ | fast, stdout=subprocess.DEVNULL)
        try:
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{PORT}")
            is_up = [command[0], "health-check", "--address", f"127.0.0.1:{PORT}"]
            while subprocess.run(is_up, capture_output=True).returncode:
                assert head.poll() is None
            with cluster.connection():
                with pytest.raises(UserError, match=r"need 3 CPUs, the cluster has 0: .* \(--wait-minutes\)"):
                    cluster.require_workers(2, 1.0, 0)
                cluster.require_workers(2, 1.0, 0, wait_minutes=2)
                assert ray.cluster_resources()["CPU"] == 4
        finally:
            head.terminate()
            head.wait(60)
            for process in psutil.process_iter(["cmdline"]):  # the provider leaves its nodes behind
                if folder in " ".join(process.info["cmdline"] or []):
                    process.kill()
