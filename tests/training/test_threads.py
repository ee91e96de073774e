"""How many threads a training worker computes with."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from oasisgen import cluster
from oasisgen.config.train import TrainConfig
from oasisgen.training.launch import threads_of

CONFIG = TrainConfig(data="d", out="o")


def test_workers_share_the_machine_on_a_ray_of_their_own(connected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of(CONFIG) == 1  # RAY_ADDRESS names it: it is for other jobs too
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert threads_of(CONFIG) == int(cluster.cpus())
    assert threads_of(replace(CONFIG, workers=2)) == max(1, int(cluster.cpus()) // 2)


def test_on_a_cluster_that_was_there_a_worker_has_the_threads_that_it_reserves(connected: str) -> None:
    code = f"""
from dataclasses import replace
from oasisgen import cluster
from {__name__} import CONFIG, threads_of
with cluster.connection():
    print([threads_of(replace(CONFIG, cpus_per_worker=cpus)) for cpus in (0.5, 1.0, 1.25, 4.0)])
"""
    environment = os.environ | {"RAY_ADDRESS": connected}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[1, 1, 2, 4]", done.stderr
