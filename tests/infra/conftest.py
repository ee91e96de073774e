"""The manifests as `kubectl apply -k` would send them, and KubeRay's schemas."""

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.lint import Manifest

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "../shared/kuberay-crds"
OVERLAYS = ("gpu", "cpu-small")
Pods = Iterator[tuple[str, Manifest]]

KUBECTL = """#!/bin/bash
# Answers as an API server would that holds one RayCronJob, and keeps what is created.
case "$1 $2" in
  "get raycronjob") exec {kubectl} annotate --local -f {folder}/template.json x=y "${{@:4}}" ;;
  "create -f") cat > {folder}/created.json; exit {created} ;;
  "get rayjob") exit {there} ;;
esac
exit 1
"""


@cache
def _built(folder: Path) -> str:
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here: the manifests are not built")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(folder: Path) -> list[Manifest]:
    """`kubectl kustomize folder`."""
    return list(yaml.safe_load_all(_built(folder)))


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    """Each overlay that we ship, built."""
    return build(ROOT / "k8s/overlays" / request.param)


@pytest.fixture
def variant(tmp_path: Path) -> Callable[..., list[Manifest]]:
    """Builds an overlay of a user's: `gpu` with some of its text replaced."""

    def built(replace: dict[str, str], base: str = "gpu") -> list[Manifest]:
        text = (ROOT / "k8s/overlays" / base / "kustomization.yaml").read_text()
        for old, new in replace.items():
            assert old in text
            text = text.replace(old, new)
        # kustomize wants relative paths, and finds those of a linked folder from its real place.
        folder = Path(tempfile.mkdtemp(dir=tmp_path.resolve()))
        text = text.replace("../../", os.path.relpath(ROOT / "k8s", folder) + "/")
        (folder / "kustomization.yaml").write_text(text)
        return build(folder)

    return built


def only(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one of that kind (and name, up to a hash) among them."""
    [found] = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].startswith(name or "")]
    return found


def settings(manifests: list[Manifest]) -> dict[str, str]:
    """The environment that the jobs are given."""
    return only(manifests, "ConfigMap", "settings")["data"]


def job_specs(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The RayJobSpec of every RayJob and RayCronJob, by name."""
    return {
        each["metadata"]["name"]: each["spec"].get("jobTemplate", each["spec"])
        for each in manifests
        if each["kind"] in {"RayJob", "RayCronJob"}
    }


def pods(manifests: list[Manifest]) -> Pods:
    """(where, pod template) of every pod that these manifests lead to."""
    for name, spec in job_specs(manifests).items():
        yield f"{name}, submitter", spec["submitterPodTemplate"]
        cluster = spec["rayClusterSpec"]
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            yield f"{name}, {group.get('groupName', 'head')}", group["template"]
    for each in manifests:
        if each["kind"] == "CronJob":
            yield "nightly, creator", each["spec"]["jobTemplate"]["spec"]["template"]


@cache
def schema(kind: str) -> Any:
    """KubeRay's structural schema of a kind."""
    if not SCHEMAS.is_dir():
        pytest.skip("no ../shared/kuberay-crds here: Ray's kinds are not checked against their schemas")
    return json.loads((SCHEMAS / f"{kind.lower()}s.json").read_text())["schema"]


@pytest.fixture
def night(tmp_path: Path) -> Callable[..., tuple[int, Manifest]]:
    """Runs the CronJob's own script on a date; the exit status and the RayJob that it creates."""
    manifests = build(ROOT / "k8s/overlays/cpu-small")
    (tmp_path / "template.json").write_text(json.dumps(only(manifests, "RayCronJob")))
    [container] = only(manifests, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    kubectl = subprocess.run(["which", "kubectl"], capture_output=True, text=True, check=True).stdout.strip()

    def run(date: str, created: int = 0, there: int = 1) -> tuple[int, Manifest]:
        answers = KUBECTL.format(folder=tmp_path, kubectl=kubectl, created=created, there=there)
        for name, text in {"kubectl": answers, "date": f"#!/bin/sh\necho {date}\n"}.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(stat.S_IRWXU)
        done = subprocess.run(
            [*container["command"], *container["args"]],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_NAME": "nightly-29403960", "JOB_UID": "a-uid"},
            capture_output=True,
            text=True,
        )
        return done.returncode, json.loads((tmp_path / "created.json").read_text())

    return run
