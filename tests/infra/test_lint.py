"""Do the checks see what they are there for? Every rule has a case that it must catch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.infra.lint import Manifest, closed, house_problems, pod_problems, problems, schema_problems

HARD = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def pod(**limits: str) -> Manifest:
    return {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "ray",
                "resources": {"limits": {"cpu": "2", "memory": "8Gi"} | limits},
                "securityContext": copy.deepcopy(HARD),
                "volumeMounts": [{"name": "dshm", "mountPath": "/dev/shm"}],
            }
        ],
        "volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "3Gi"}}],
    }


def job() -> Manifest:
    """A RayJob without a fault."""
    worker = pod(**{"nvidia.com/gpu": "1"})
    worker["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    cluster = {
        "rayVersion": "2.60.0",
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2"},
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": {"spec": pod()}},
        "workerGroupSpecs": [
            {"groupName": "gpu", "replicas": 1, "minReplicas": 0, "maxReplicas": 2, "template": {"spec": worker}}
        ],
    }
    spec = {
        "entrypoint": "python jobs/train.py",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 60,
        "activeDeadlineSeconds": 60,
        "backoffLimit": 2,
        "rayClusterSpec": cluster,
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "train"}, "spec": spec}


def put(path: str, value: Any) -> Callable[[Manifest], None]:
    """Sets (or, with None, removes) the field at `path`, counted from spec."""

    def change(manifest: Manifest) -> None:
        *way, last = path.split(".")
        place: Any = manifest["spec"]
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place.setdefault(step, {})
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


CLUSTER, HEAD, GPU = "rayClusterSpec", "rayClusterSpec.headGroupSpec", "rayClusterSpec.workerGroupSpecs.0"
SELECTOR = {"ray.io/cluster": "mine"}
REFUSED = {
    "TTL without shutdown": ([put("shutdownAfterJobFinishes", False)], "without shutdownAfterJobFinishes"),
    "negative TTL": ([put("ttlSecondsAfterFinished", -1)], "below 0"),
    "suspend without shutdown": (
        [put("shutdownAfterJobFinishes", False), put("ttlSecondsAfterFinished", 0), put("suspend", True)],
        "suspend without",
    ),
    "deletion rules beside shutdown": (
        [put("deletionStrategy", {"deletionRules": [{"policy": "DeleteSelf"}]})],
        "deletionRules beside",
    ),
    "negative retries": ([put("backoffLimit", -1)], "backoffLimit -1"),
    "no time": ([put("activeDeadlineSeconds", 0)], "activeDeadlineSeconds 0"),
    "no time to start": ([put("preRunningDeadlineSeconds", 0)], "preRunningDeadlineSeconds 0"),
    "mistyped mode": ([put("submissionMode", "K8sjob")], "submissionMode K8sjob"),
    "interactive retries": ([put("submissionMode", "InteractiveMode")], "in InteractiveMode"),
    "sidecar with a pod": (
        [put("submissionMode", "SidecarMode"), put("submitterPodTemplate", {"spec": pod()})],
        "in SidecarMode",
    ),
    "nothing to run": ([put("entrypoint", " ")], "no entrypoint"),
    "runtime environment that does not parse": ([put("runtimeEnvYAML", "a: [1")], "does not parse"),
    "runtime environment that is a word": ([put("runtimeEnvYAML", "pip")], "no mapping"),
    "neither cluster nor selector": ([put("rayClusterSpec", None)], "one of rayClusterSpec and"),
    "cluster and selector": ([put("clusterSelector", SELECTOR)], "one of rayClusterSpec and"),
    "retries on a shared cluster": (
        [put("rayClusterSpec", None), put("clusterSelector", SELECTOR)],
        "backoffLimit with clusterSelector",
    ),
    "suspend on a shared cluster": (
        [put("rayClusterSpec", None), put("clusterSelector", SELECTOR), put("suspend", True)],
        "suspend with clusterSelector",
    ),
    "more at least than at most": ([put(f"{GPU}.minReplicas", 3)], "not minReplicas 3 <="),
    "more than at most": ([put(f"{GPU}.replicas", 3)], "<= maxReplicas 2"),
    "no group name": ([put(f"{GPU}.groupName", "")], "needs one of its own"),
    "a number for Ray": ([put(f"{HEAD}.rayStartParams.num-cpus", 0)], "is no string"),
    "a truth for Ray": ([put(f"{GPU}.rayStartParams", {"block": True})], "is no string"),
    "labels for Ray": ([put(f"{GPU}.rayStartParams", {"labels": "a=b"})], "rayStartParams.labels"),
    "resources twice": ([put(f"{HEAD}.resources", {"CPU": "0"})], "resources in the group and"),
    "no container": ([put(f"{GPU}.template.spec.containers", [])], "no container"),
    "restarts with autoscaler v2": ([put(f"{GPU}.template.spec.restartPolicy", "Always")], "with autoscaler v2"),
    "restarts of the head": ([put(f"{HEAD}.template.spec.restartPolicy", "OnFailure")], "with autoscaler v2"),
    "suspended group": ([put(f"{GPU}.suspend", True)], "gpu: suspend"),
    "autoscaler named twice": (
        [put(f"{HEAD}.template.spec.containers.0.env", [{"name": "RAY_enable_autoscaler_v2", "value": "1"}])],
        "RAY_enable_autoscaler_v2",
    ),
    "Redis by hand": (
        [put(f"{HEAD}.template.spec.containers.0.env", [{"name": "RAY_REDIS_ADDRESS", "value": "r:6379"}])],
        "gcsFaultToleranceOptions",
    ),
    "tokens without a version": ([put(f"{CLUSTER}.rayVersion", None)], "2.52.0 or newer"),
    "tokens with an old version": ([put(f"{CLUSTER}.rayVersion", "2.9.3")], "2.52.0 or newer"),
}


def test_a_job_without_a_fault_passes() -> None:
    assert problems(job()) == []
    assert list(house_problems(job()["spec"])) == []
    assert list(pod_problems(pod())) == []


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_operator_refuses_is_caught(case: str) -> None:
    changes, said = REFUSED[case]
    manifest = job()
    for change in changes:
        change(manifest)
    assert any(said in problem for problem in problems(manifest)), problems(manifest)
    # The same inside a RayCronJob.
    nightly = {"kind": "RayCronJob", "metadata": {"name": "n"}}
    nightly["spec"] = {"schedule": "0 2 * * *", "jobTemplate": manifest["spec"]}
    assert any(said in problem for problem in problems(nightly)), problems(nightly)


@pytest.mark.parametrize(
    ("kind", "name", "fine"),
    [
        ("RayJob", "a" * 47, True),
        ("RayJob", "a" * 48, False),
        ("RayCluster", "a" * 53, True),
        ("RayCluster", "a" * 54, False),
        ("RayCronJob", "a" * 36, True),
        ("RayCronJob", "a" * 37, False),
        ("CronJob", "a" * 53, False),
        ("RayJob", "2026-11-24", False),
        ("RayJob", "nightly-2026-11-24", True),
        ("RayJob", "Train", False),
        ("RayJob", "train.full", False),
        ("RayJob", "train-", False),
    ],
)
def test_names(kind: str, name: str, fine: bool) -> None:
    spec = {
        "RayJob": job()["spec"],
        "RayCluster": job()["spec"]["rayClusterSpec"],
        "RayCronJob": {"schedule": "@daily", "jobTemplate": job()["spec"]},
        "CronJob": {"schedule": "@daily"},
    }[kind]
    assert (problems({"kind": kind, "metadata": {"name": name}, "spec": spec}) == []) == fine


@pytest.mark.parametrize(
    ("schedule", "fine"),
    [
        ("0 2 * * *", True),
        ("*/15 0-6,22 1 jan-mar mon-fri", True),
        ("@daily", True),
        ("not a cron", False),
        ("60 2 * * *", False),
        ("0 24 * * *", False),
        ("0 2 0 * *", False),
        ("0 2 * *", False),
        ("0 2 * * * *", False),
        ("0 6-2 * * *", False),
        ("*/0 * * * *", False),
        ("@nightly", False),
        ("TZ=UTC 0 2 * * *", False),
    ],
)
def test_schedules(schedule: str, fine: bool) -> None:
    for manifest in (
        {"kind": "CronJob", "metadata": {"name": "n"}, "spec": {"schedule": schedule}},
        {
            "kind": "RayCronJob",
            "metadata": {"name": "n"},
            "spec": {"schedule": schedule, "jobTemplate": job()["spec"]},
        },
    ):
        assert (problems(manifest) == []) == fine


def test_a_zone_or_a_policy_that_does_not_exist_is_caught() -> None:
    spec = {"schedule": "@daily", "timeZone": "Europe/Atlantis", "concurrencyPolicy": "Never"}
    found = problems({"kind": "CronJob", "metadata": {"name": "n"}, "spec": spec})
    assert [text.split(":")[0] for text in found] == ["timeZone Europe/Atlantis", "concurrencyPolicy Never"]


TAINT = "rayClusterSpec.workerGroupSpecs.0.template.spec.tolerations"
LIMITS = "template.spec.containers.0.resources.limits"
SHM = "template.spec.volumes.0.emptyDir"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(f"{HEAD}.rayStartParams.num-cpus", "2"), "would be given work"),
        (put(f"{HEAD}.serviceType", "LoadBalancer"), "open to the outside"),
        (put(f"{HEAD}.enableIngress", True), "open to the outside"),
        (put(f"{CLUSTER}.authOptions.mode", "disabled"), "no tokens"),
        (put(f"{CLUSTER}.autoscalerOptions.version", "v1"), "not v2"),
        (put("shutdownAfterJobFinishes", False), "outlives"),
        (put("activeDeadlineSeconds", None), "for ever"),
        (put(f"{GPU}.{LIMITS}.memory", None), "no limits"),
        (put(TAINT, []), "go together"),
        (put(f"{GPU}.{LIMITS}", {"cpu": "2", "memory": "8Gi"}), "go together"),
        (put(f"{HEAD}.{LIMITS}", {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"}), "head: a GPU"),
        (put(f"{GPU}.{SHM}.medium", ""), "no emptyDir of medium Memory"),
        (put(f"{GPU}.{SHM}.sizeLimit", "1Gi"), "30 % of 8Gi or more"),
        (put(f"{GPU}.{SHM}.sizeLimit", "9Gi"), "within it"),
    ],
)
def test_what_our_jobs_would_stumble_over_is_caught(change: Callable[[Manifest], None], said: str) -> None:
    manifest = job()
    change(manifest)
    found = list(house_problems(manifest["spec"]))
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("securityContext.runAsNonRoot", False, "root"),
        ("containers.0.securityContext.runAsUser", 0, "root"),
        ("securityContext.seccompProfile", {"type": "Unconfined"}, "seccomp"),
        ("containers.0.securityContext.allowPrivilegeEscalation", None, "gain privileges"),
        ("containers.0.securityContext.privileged", True, "gain privileges"),
        ("containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}, "capabilities"),
        ("containers.0.securityContext.capabilities.drop", ["CHOWN"], "capabilities"),
        ("containers.0.securityContext.readOnlyRootFilesystem", False, "root file system"),
        ("hostNetwork", True, "hostNetwork"),
        ("volumes", [{"name": "disk", "hostPath": {"path": "/"}}], "volume disk"),
        ("initContainers", [{"name": "first"}], "first: may gain"),
    ],
)
def test_a_pod_that_is_not_restricted_is_caught(path: str, value: Any, said: str) -> None:
    spec = pod()
    put(path, value)({"spec": spec})
    assert any(said in problem for problem in pod_problems(spec)), list(pod_problems(spec))


def test_a_closed_schema_knows_fields_types_and_choices() -> None:
    quantity = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "mode": {"type": "string", "enum": ["a"]},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {}},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"cpu": quantity}}},
        },
    }
    fine = {"mode": "a", "free": {"x": 1}, "map": {"k": "v"}, "list": [{"cpu": 1}, {"cpu": "1"}]}
    assert schema_problems(fine, schema) == []
    for wrong in ({"mod": "a"}, {"mode": "b"}, {"map": {"k": 1}}, {"list": [{"cpus": 1}]}, {"list": [{"cpu": 1.5}]}):
        assert schema_problems(wrong, schema), wrong
    assert "additionalProperties" not in closed(schema["properties"]["free"])
