"""What a cluster would say to a manifest, said here: by its schema, by the operator, and by our own rules.

Every function takes manifests as dicts and returns its complaints, one line each; none means fine.
"""

import re
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import jsonschema
import yaml
from ray.autoscaler._private.kuberay.utils import parse_quantity

Manifest = dict[str, Any]

LONGEST_NAME = {"RayJob": 47, "RayCluster": 53, "RayCronJob": 36, "CronJob": 52}
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
OLDEST_WITH_TOKENS = (2, 52, 0)
STORE_SHARE = 0.3  # of a node's memory that Ray's object store takes
CRON = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
CRON_NAMES = {
    "month": ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    "weekday": ["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
}


# --- the schema ---------------------------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """A structural schema of a CRD as a JSON schema in which a field that it does not name is an error.

    A cluster would drop such a field without a word.
    """
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {
        key: {name: closed(each) for name, each in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
    }
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def schema_problems(manifest: Manifest, schema: Any) -> list[str]:
    """Where `manifest` differs from the CRD's structural `schema`."""
    errors = jsonschema.Draft202012Validator(closed(schema)).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors]


# --- the operator -------------------------------------------------------------------------------------------------


def problems(manifest: Manifest) -> list[str]:
    """What KubeRay refuses in a RayJob, RayCluster or RayCronJob, or Kubernetes in a CronJob, past their schemas."""
    kind, spec = manifest["kind"], manifest.get("spec", {})
    found = list(name_problems(kind, manifest["metadata"].get("name", "")))
    if kind == "RayJob":
        found += job_problems(spec)
    elif kind == "RayCluster":
        found += cluster_problems(spec)
    elif kind == "RayCronJob":
        found += [*cron_problems(spec), *job_problems(spec.get("jobTemplate", {}))]
    elif kind == "CronJob":
        found += cron_problems(spec)
        if spec.get("concurrencyPolicy", "Allow") not in {"Allow", "Forbid", "Replace"}:
            found.append(f"concurrencyPolicy {spec['concurrencyPolicy']}: Allow, Forbid or Replace")
    return found


def name_problems(kind: str, name: str) -> Iterator[str]:
    longest = LONGEST_NAME.get(kind)
    if longest and len(name) > longest:
        yield f"name {name}: {len(name)} characters, a {kind} may have {longest}"
    if kind.startswith("Ray") and not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name {name!r}: not DNS-1035 (a-z, 0-9, -, beginning with a letter)"


def job_problems(spec: Manifest) -> Iterator[str]:
    """Of a RayJobSpec."""
    shutdown, ttl = spec.get("shutdownAfterJobFinishes", False), spec.get("ttlSecondsAfterFinished", 0)
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    mode, retries = spec.get("submissionMode", "K8sJobMode"), spec.get("backoffLimit", 0)
    if ttl < 0:
        yield f"ttlSecondsAfterFinished {ttl}: below 0"
    if ttl > 0 and not shutdown:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if spec.get("suspend") and not shutdown:
        yield "suspend without shutdownAfterJobFinishes"
    if rules and (shutdown or ttl):
        yield "deletionRules beside shutdownAfterJobFinishes or ttlSecondsAfterFinished"
    if retries < 0:
        yield f"backoffLimit {retries}: below 0"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} {spec[field]}: not above 0"
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode}: one of {', '.join(sorted(SUBMISSION_MODES))}"
    if mode == "InteractiveMode" and retries:
        yield "backoffLimit in InteractiveMode"
    if mode == "SidecarMode" and (spec.get("submitterPodTemplate") or spec.get("submitterConfig")):
        yield "submitterPodTemplate or submitterConfig in SidecarMode"
    if mode != "InteractiveMode" and not spec.get("entrypoint", "").strip():
        yield "no entrypoint"
    try:
        if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
            yield "runtimeEnvYAML is no mapping"
    except yaml.YAMLError as error:
        yield f"runtimeEnvYAML does not parse: {str(error).splitlines()[0]}"
    cluster, selector = spec.get("rayClusterSpec"), spec.get("clusterSelector")
    if bool(cluster) == bool(selector):
        yield "one of rayClusterSpec and clusterSelector"
    if selector and retries:
        yield "backoffLimit with clusterSelector"
    if selector and spec.get("suspend"):
        yield "suspend with clusterSelector"
    if cluster:
        yield from cluster_problems(cluster)


def cluster_problems(spec: Manifest) -> Iterator[str]:
    """Of a RayClusterSpec."""
    scaling = spec.get("enableInTreeAutoscaling", False)
    second = scaling and spec.get("autoscalerOptions", {}).get("version") == "v2"
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    names = [group.get("groupName", "") for group in workers]
    if len(set(names)) < len(names) or "" in names:
        yield f"groupNames {names}: each needs one of its own"
    for name, group in [("head", head), *zip(names, workers, strict=True)]:
        parameters = group.get("rayStartParams", {})
        for key, value in parameters.items():
            if not isinstance(value, str):
                yield f"{name}: rayStartParams.{key} {value!r} is no string"
        if "labels" in parameters:
            yield f"{name}: rayStartParams.labels; use the group's labels"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters):
            yield f"{name}: resources in the group and in rayStartParams"
        pod = group["template"].get("spec", {})
        if not pod.get("containers"):
            yield f"{name}: no container"
        if second and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy {pod['restartPolicy']} with autoscaler v2"
    for name, group in zip(names, workers, strict=True):
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not 0 <= least <= group.get("replicas", least) <= most:
            yield f"{name}: not minReplicas {least} <= replicas {group.get('replicas', least)} <= maxReplicas {most}"
        if group.get("suspend"):
            yield f"{name}: suspend"
    variables = {each["name"] for each in _containers(head)[:1] for each in each.get("env", [])}
    if "RAY_enable_autoscaler_v2" in variables and (second or not scaling):
        yield "RAY_enable_autoscaler_v2 in the head's env: say autoscalerOptions.version"
    if variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
        yield "Redis in the head's env: say gcsFaultToleranceOptions"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in re.findall(r"\d+", spec.get("rayVersion", ""))[:3])
        if version < OLDEST_WITH_TOKENS:
            yield f"authOptions.mode token with rayVersion {spec.get('rayVersion')}: 2.52.0 or newer"


def cron_problems(spec: Manifest) -> Iterator[str]:
    """Of `schedule` and `timeZone`."""
    schedule = str(spec.get("schedule", ""))
    if "TZ=" in schedule:
        yield "schedule holds a time zone: say timeZone"
    elif not _is_cron(schedule):
        yield f"schedule {schedule!r} is not a cron line"
    if zone := spec.get("timeZone"):
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            yield f"timeZone {zone}: not in the IANA list"


def _is_cron(line: str) -> bool:
    if line in {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}:
        return True
    fields = line.split()
    return len(fields) == len(CRON) and all(
        _fits(piece, *field) for text, field in zip(fields, CRON, strict=True) for piece in text.split(",")
    )


def _fits(piece: str, name: str, low: int, high: int) -> bool:
    """Is `piece` one of: *, 5, 1-5, mon, mon-fri, each with or without a step like /15?"""
    match = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/([1-9]\d*))?", piece.lower())
    if not match:
        return False
    names = CRON_NAMES.get(name, [])
    ends = [
        names.index(end) + low if end in names else int(end) if end.isdigit() else -1
        for end in match.groups()[:2]
        if end
    ]
    return all(low <= end <= high for end in ends) and ends == sorted(ends)


# --- our own rules ------------------------------------------------------------------------------------------------


def _containers(group: Manifest) -> list[Manifest]:
    return group["template"].get("spec", {}).get("containers", [])


def house_problems(spec: Manifest) -> Iterator[str]:
    """Of a RayJobSpec: what the operator takes, but a job of ours would stumble over."""
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "head: rayStartParams.num-cpus is not 0, it would be given work"
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield "head: the dashboard is open to the outside"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "no tokens: authOptions.mode"
    if cluster.get("enableInTreeAutoscaling") and cluster.get("autoscalerOptions", {}).get("version") != "v2":
        yield "autoscalerOptions.version is not v2"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "the cluster outlives the job: shutdownAfterJobFinishes"
    if not spec.get("activeDeadlineSeconds"):
        yield "no activeDeadlineSeconds: a job that hangs would cost for ever"
    for group in [head, *cluster.get("workerGroupSpecs", [])]:
        name = group.get("groupName", "head")
        pod = group["template"]["spec"]
        resources = pod["containers"][0].get("resources", {})
        if not {"cpu", "memory"} <= resources.get("limits", {}).keys():
            yield f"{name}: no limits of cpu and memory, of which Ray takes its own"
            continue
        gpus = resources["limits"].get("nvidia.com/gpu")
        tolerated = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod.get(
            "tolerations", []
        )
        if bool(gpus) != tolerated:
            yield f"{name}: limit and toleration of nvidia.com/gpu go together"
        if gpus and group is head:
            yield "head: a GPU"
        yield from (f"{name}: {text}" for text in _store_problems(pod, resources["limits"]["memory"]))


def _store_problems(pod: Manifest, memory: str) -> Iterator[str]:
    """Is /dev/shm, where the object store lies, as large as Ray makes the store?"""
    mounts = {each["mountPath"]: each["name"] for each in pod["containers"][0].get("volumeMounts", [])}
    volumes = {each["name"]: each for each in pod.get("volumes", [])}
    empty = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
    if empty.get("medium") != "Memory":
        yield "no emptyDir of medium Memory at /dev/shm"
        return
    room = parse_quantity(empty.get("sizeLimit", memory))
    if not STORE_SHARE * float(parse_quantity(memory)) <= room <= parse_quantity(memory):
        yield f"/dev/shm has {empty['sizeLimit']}: 30 % of {memory} or more, within it"


def pod_problems(pod: Manifest) -> Iterator[str]:
    """Of a PodSpec: what the Pod Security standard `restricted` refuses, and a root file system that can be written."""
    shared = pod.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    for volume in pod.get("volumes", []):
        if not {"emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim", "ephemeral"} & volume.keys():
            yield f"volume {volume['name']} of a kind that is not allowed"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        own, name = container.get("securityContext", {}), container["name"]
        if (
            not own.get("runAsNonRoot", shared.get("runAsNonRoot"))
            or own.get("runAsUser", shared.get("runAsUser")) == 0
        ):
            yield f"{name}: may run as root"
        if own.get("seccompProfile", shared.get("seccompProfile", {})).get("type") != "RuntimeDefault":
            yield f"{name}: no seccompProfile RuntimeDefault"
        yield from (f"{name}: {text}" for text in container_problems(own))


def image_problems(image: str) -> Iterator[str]:
    """Of a container's image: a tag may mean another image tomorrow, a digest cannot."""
    if not re.fullmatch(r"[^@ ]+@sha256:[0-9a-f]{64}", image):
        yield f"{image} has no digest: name:tag@sha256:…, which `docker pull` and `docker push` print"


def container_problems(context: Manifest) -> Iterator[str]:
    """Of a container's own SecurityContext."""
    if context.get("privileged") or context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if context.get("capabilities", {}).get("drop") != ["ALL"] or context.get("capabilities", {}).get("add"):
        yield "keeps capabilities"
    if not context.get("readOnlyRootFilesystem"):
        yield "can write its root file system"
