"""Every overlay, built: valid for Kubernetes, for KubeRay and for the jobs that it starts."""

import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prometheus_client import generate_latest
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

import oasisgen
from oasisgen import meters
from oasisgen.config.generate import GenerateConfig
from oasisgen.config.train import TrainConfig
from tests.infra.conftest import OVERLAYS, ROOT, build, job_specs, only, pods, schema, settings
from tests.infra.lint import (
    STORE_SHARE,
    Manifest,
    house_problems,
    image_problems,
    pod_problems,
    problems,
    schema_problems,
)

CLUSTER_WIDE = {"Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
KUBERNETES = ("1.30.0", "1.34.0")  # the oldest we promise, and a recent one
OF_KUBERNETES = re.compile(r"^(v1|apps/v1|batch/v1|[a-z.]*\.k8s\.io/v1)$")
OASIS_BYTES = 710_000_000  # what a node that trains holds of it
Variant = Callable[..., list[Manifest]]
Night = Callable[..., tuple[int, Manifest]]


def core_problems(manifest: Manifest, version: str) -> list[str]:
    """What Kubernetes' own schema says to one of its kinds; unknown fields are errors."""
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
        return [str(error).splitlines()[0]]
    return []


def valid(manifests: list[Manifest]) -> None:
    """Assert that these manifests are what their schemas and the operator want."""
    for each in manifests:
        where = f"{each['kind']} {each['metadata']['name']}"
        if each["apiVersion"] == "ray.io/v1":
            assert schema_problems(each, schema(each["kind"])) == [], where
        else:
            assert OF_KUBERNETES.match(each["apiVersion"]), where
            for version in KUBERNETES:
                assert core_problems(each, version) == [], where
        assert problems(each) == [], where
        assert each["metadata"].get("namespace") == (None if each["kind"] in CLUSTER_WIDE else "oasisgen"), where
    for name, spec in job_specs(manifests).items():
        assert list(house_problems(spec)) == [], name
    for where, template in pods(manifests):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | template.get("metadata", {})}
        for version in KUBERNETES:
            assert core_problems(pod | {"spec": template["spec"]}, version) == [], where
        assert list(pod_problems(template["spec"])) == [], where


def test_every_overlay_is_valid(overlay: list[Manifest]) -> None:
    valid(overlay)
    assert sorted(job_specs(overlay)) == ["nightly", "train"]


@pytest.mark.parametrize("component", ["kueue", "volcano"])
def test_components_fit_the_overlay(component: str, variant: Variant) -> None:
    line = "# components: [../../components/kueue] # or volcano"
    built = variant({line: f"components: [../../components/{component}]"})
    valid(built)
    queue = {"kueue": "kueue.x-k8s.io/queue-name", "volcano": "volcano.sh/queue-name"}[component]
    for each in built:
        if each["kind"] in {"RayJob", "RayCronJob"}:
            assert each["metadata"]["labels"][queue] == "oasisgen"
    for _, spec in job_specs(built).items():
        assert spec["rayClusterSpec"].get("enableInTreeAutoscaling", False) == (component != "kueue")


def test_training_or_the_nights_may_be_left_out(variant: Variant) -> None:
    built = variant({"- ../../train # remove it, and `apply` leaves training alone\n": ""})
    valid(built)
    assert list(job_specs(built)) == ["nightly"]
    built = variant({"- ../../nightly/cronjob # or ../../nightly/raycronjob\n": ""})
    valid(built)
    assert list(job_specs(built)) == ["train"]


def test_the_commented_patch_lets_the_nights_begin(variant: Variant) -> None:
    text = (ROOT / "k8s/overlays/gpu/kustomization.yaml").read_text()
    [commented] = re.findall(r"^(# - target: {kind: CronJob.*\n(?:#  .*\n)+)", text, re.M)
    built = variant({commented: commented.replace("# ", "")})
    assert only(built, "CronJob")["spec"]["suspend"] is False


def test_the_operator_may_start_the_nights(variant: Variant) -> None:
    built = variant({"nightly/cronjob # or ../../nightly/raycronjob": "nightly/raycronjob"})
    valid(built)
    nightly = only(built, "RayCronJob")["spec"]
    assert (nightly["suspend"], nightly["timeZone"]) == (False, "Etc/UTC")
    assert not [each for each in built if each["kind"] in {"CronJob", "Role", "RoleBinding"}]


def test_beside_a_cronjob_the_template_starts_nothing(overlay: list[Manifest]) -> None:
    assert only(overlay, "RayCronJob")["spec"]["suspend"] is True
    spec = only(overlay, "CronJob")["spec"]
    assert (spec["concurrencyPolicy"], spec["timeZone"], spec["suspend"]) == ("Forbid", "Etc/UTC", True)
    # Forbid sees the creator alone, so all tries of a night must end within a day.
    night = job_specs(overlay)["nightly"]
    assert (night["backoffLimit"] + 1) * night["activeDeadlineSeconds"] < 86400


def test_generated_names_and_images_reach_the_pods_of_rays_kinds(overlay: list[Manifest]) -> None:
    name = only(overlay, "ConfigMap", "settings")["metadata"]["name"]
    assert re.fullmatch(r"settings-[a-z0-9]{10}", name)
    for where, template in pods(overlay):
        [container] = template["spec"]["containers"]
        name_and_tag = container["image"].split("@")[0]
        if where == "nightly, creator":
            assert re.search(r"/k8s:\d", name_and_tag)
            continue
        assert {"configMapRef": {"name": name}} in container["envFrom"], where
        # One version everywhere: the package's, the image's, and Ray's of the lock.
        assert name_and_tag.endswith(f"oasisgen:{oasisgen.__version__}"), where
    ray = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    for spec in job_specs(overlay).values():
        assert ray
        assert spec["rayClusterSpec"]["rayVersion"] == ray[1]


def test_images_are_named_by_their_digest() -> None:
    """In every overlay but that for a try on one machine, whose images come from no registry."""
    folders = [each for each in (ROOT / "k8s/overlays").iterdir() if each.name != "cpu-small"]
    assert folders
    for folder in folders:
        for where, template in pods(build(folder)):
            for container in template["spec"]["containers"]:
                assert list(image_problems(container["image"])) == [], (folder.name, where)
    [image] = re.findall(r"^  image: (\S+)", (ROOT / "cluster.yaml").read_text(), re.M)
    assert list(image_problems(image)) == []
    # Neither of them bears a digest that somebody might take for a real one.
    texts = [(ROOT / "cluster.yaml").read_text(), (ROOT / "k8s/overlays/gpu/kustomization.yaml").read_text()]
    assert set(re.findall(r"sha256:(\w+)", " ".join(texts))) == {"0" * 64}


def test_an_image_by_tag_alone_is_caught(variant: Variant) -> None:
    digest = f', digest: "sha256:{"0" * 64}"'
    built = variant({digest: ""})
    images = {template["spec"]["containers"][0]["image"] for _, template in pods(built)}
    assert len(images) == 2
    assert all(list(image_problems(image)) for image in images)


def test_without_the_reference_configuration_the_hash_is_lost(variant: Variant, tmp_path: Path) -> None:
    """That is what base/names.yaml is for."""
    built = variant({})
    copy = tmp_path / "k8s"
    subprocess.run(["cp", "-r", str(ROOT / "k8s"), str(copy)], check=True)
    (copy / "base/names.yaml").write_text("nameReference: []\n")
    blind = build(copy / "overlays/gpu")
    for manifests, found in ((built, True), (blind, False)):
        name = only(manifests, "ConfigMap", "settings")["metadata"]["name"]
        assert (name in json.dumps(only(manifests, "RayJob"))) == found


def test_no_secret_is_in_the_manifests(overlay: list[Manifest]) -> None:
    assert not [each for each in overlay if each["kind"] == "Secret"]
    text = json.dumps(overlay)
    assert not re.search(r"AKIA|SECRET_ACCESS_KEY|auth_token|password", text, re.I)


def test_the_creator_may_do_nothing_but_create(overlay: list[Manifest]) -> None:
    rules = {tuple(rule["resources"]): rule for rule in only(overlay, "Role")["rules"]}
    assert set(rules) == {("rayjobs",), ("raycronjobs",)}
    assert rules["rayjobs",]["verbs"] == ["create", "get"]
    assert (rules["raycronjobs",]["verbs"], rules["raycronjobs",]["resourceNames"]) == (["get"], ["nightly"])
    binding = only(overlay, "RoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "nightly", "namespace": "oasisgen"}]


def test_only_the_head_and_the_creator_have_a_token_of_kubernetes(overlay: list[Manifest]) -> None:
    accounts = {
        each["metadata"]["name"]: each.get("automountServiceAccountToken", True)
        for each in overlay
        if each["kind"] == "ServiceAccount"
    }
    with_token = {
        where
        for where, template in pods(overlay)
        if template["spec"].get("automountServiceAccountToken", accounts[template["spec"]["serviceAccountName"]])
    }
    assert with_token == {"train, head", "nightly, head", "nightly, creator"}


def test_the_network_is_closed_but_for_what_is_named(overlay: list[Manifest]) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in overlay if each["kind"] == "NetworkPolicy"}
    assert policies["default"]["podSelector"] == {}
    assert policies["default"]["policyTypes"] == ["Ingress", "Egress"]
    assert policies["default"]["ingress"] == [{"from": [{"podSelector": {}}]}]
    opened = {
        name: [(port["port"], "ipBlock" in json.dumps(rule)) for rule in spec["ingress"] for port in rule["ports"]]
        for name, spec in policies.items()
        if name != "default"
    }
    assert opened == {"operator": [(8265, False)], "metrics": [(8080, False)]}
    blocks = [to["ipBlock"] for rule in policies["default"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert all("169.254.0.0/16" in block["except"] for block in blocks)


def test_nobody_is_let_in_or_reached_by_a_label_alone(overlay: list[Manifest]) -> None:
    """Whoever makes pods in another namespace gives them any label; the name of a namespace is not theirs to give."""
    named = "kubernetes.io/metadata.name"
    peers: dict[str, Any] = {}
    for policy in (each for each in overlay if each["kind"] == "NetworkPolicy"):
        rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        for peer in (each for rule in rules for each in rule.get("from", rule.get("to"))):
            if "namespaceSelector" in peer:
                assert list(peer["namespaceSelector"]["matchLabels"]) == [named], policy["metadata"]["name"]
                peers.setdefault(policy["metadata"]["name"], []).append(peer)
    [operator] = peers["operator"]
    assert operator == {
        "namespaceSelector": {"matchLabels": {named: "kuberay"}},  # where k8s/README.md installs it
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    assert "--namespace kuberay " in (ROOT / "k8s/README.md").read_text()
    assert {
        "namespaceSelector": {"matchLabels": {named: "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    } in peers["default"]


def test_training_and_the_nights_have_accounts_of_their_own(overlay: list[Manifest]) -> None:
    there = {each["metadata"]["name"] for each in overlay if each["kind"] == "ServiceAccount"}
    used = {where: template["spec"]["serviceAccountName"] for where, template in pods(overlay)}
    assert there == set(used.values()) == {"train", "generate", "nightly"}
    for where, account in used.items():
        job, part = where.split(", ")
        assert account == {"train": "train", "nightly": "generate"}[job] or (part, account) == ("creator", "nightly")


def test_each_account_has_keys_of_its_own(overlay: list[Manifest]) -> None:
    for where, template in pods(overlay):
        container = template["spec"]["containers"][0]
        secrets = [each["secretRef"] for each in container.get("envFrom", []) if "secretRef" in each]
        account = template["spec"]["serviceAccountName"]
        needs = where.split(", ")[1] in {"head", "workers"}
        assert secrets == ([{"name": f"s3-keys-{account}", "optional": True}] if needs else []), where


# --- what the jobs make of it -------------------------------------------------------------------------------------


def job(name: str) -> ModuleType:
    """`jobs/<name>.py` as a module."""
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(entrypoint: str, environment: dict[str, str]) -> list[str]:
    """The words that the submitter's shell makes of an entrypoint; a setting that is missing is an error."""
    done = subprocess.run(
        ["bash", "-euc", f"printf '%s\\n' {entrypoint}"],
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_every_command_line_parses(overlay: list[Manifest]) -> None:
    environment = settings(overlay)
    python, script, *flags = arguments(job_specs(overlay)["train"]["entrypoint"], environment)
    assert (python, script) == ("python", "jobs/train.py")
    training = job("train").parse(flags)
    assert training.out == f"{environment['OASISGEN_ROOT']}/runs/{environment['OASISGEN_RUN']}"
    assert training.data == f"{environment['OASISGEN_ROOT']}/datasets/{environment['OASISGEN_DATASET']}"
    assert training.min_workers == 1

    python, script, *flags = arguments(job_specs(overlay)["nightly"]["entrypoint"], environment)
    assert (python, script) == ("python", "jobs/generate.py")
    night = job("generate").parse(flags)
    assert night.model == training.out
    assert re.fullmatch(rf"{environment['OASISGEN_ROOT']}/batches/\d{{4}}-\d\d-\d\d", night.out)
    assert night.base_seed is None  # the night's name decides
    assert night.count == int(environment["OASISGEN_COUNT"])


def test_a_mistyped_flag_or_setting_is_caught(overlay: list[Manifest]) -> None:
    with pytest.raises(SystemExit):
        job("train").parse(["full", "--data", "d", "--out", "o", "--worker", "2"])
    with pytest.raises(subprocess.CalledProcessError):
        arguments("python jobs/train.py $OASISGEN_WORKER", settings(overlay))


def derived(spec: Manifest) -> dict[str, Any]:
    """Node types as Ray's own KubeRay autoscaler derives them from a RayJobSpec."""
    resource = {"metadata": {"name": "cluster", "namespace": "oasisgen"}, "spec": spec["rayClusterSpec"]}
    return _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]


def has_room(spec: Manifest, config: TrainConfig | GenerateConfig) -> bool:
    """Do the workers that a job starts with have what it asks for (oasisgen.cluster.require_workers)?"""
    nodes = derived(spec)
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    node = nodes[group["groupName"]]["resources"]
    if node["memory"] * STORE_SHARE < OASIS_BYTES or nodes["headgroup"]["resources"]["CPU"] != 0:
        return False
    if isinstance(config, GenerateConfig):
        return node["CPU"] * group["replicas"] >= 2  # an actor, a reading and a writing task
    return (
        node["CPU"] * group["replicas"] >= config.workers * config.cpus_per_worker + 1
        and node.get("GPU", 0) * group["replicas"] >= config.workers * config.gpus_per_worker
        and node["CPU"] >= config.cpus_per_worker
    )


def test_workers_have_room_for_their_jobs(overlay: list[Manifest]) -> None:
    environment, specs = settings(overlay), job_specs(overlay)
    train = job("train").parse(arguments(specs["train"]["entrypoint"], environment)[2:])
    generate = job("generate").parse(arguments(specs["nightly"]["entrypoint"], environment)[2:])
    assert has_room(specs["train"], train)
    assert has_room(specs["nightly"], generate)
    [group] = specs["train"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["maxReplicas"] == train.workers
    # One worker fewer, and training would be refused.
    group["replicas"] -= 1
    assert not has_room(specs["train"], train)


def test_gpus_are_where_the_gpu_overlay_wants_them() -> None:
    specs = job_specs(build(ROOT / "k8s/overlays/gpu"))
    for spec in specs.values():
        nodes = derived(spec)
        assert nodes["workers"]["resources"]["GPU"] == 1
        assert "GPU" not in nodes["headgroup"]["resources"]
        assert nodes["workers"]["min_workers"] == 0


def test_settings_decide_the_number_of_workers(variant: Variant) -> None:
    specs = job_specs(variant({"OASISGEN_WORKERS=2": "OASISGEN_WORKERS=4"}))
    counts = {name: spec["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] for name, spec in specs.items()}
    assert counts == {"train": 4, "nightly": 1}


# --- the nights ---------------------------------------------------------------------------------------------------


def test_a_night_becomes_a_dated_job(night: Night) -> None:
    outs = set()
    for date in ("2026-11-23", "2026-11-24"):
        status, created = night(date)
        assert status == 0
        assert created["metadata"]["name"] == f"nightly-{date}"
        assert created["metadata"]["labels"] == {"app.kubernetes.io/part-of": "oasisgen"}
        [owner] = created["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", "nightly-29403960", "a-uid")
        assert schema_problems(created, schema("RayJob")) == []
        assert problems(created) == []
        assert list(house_problems(created["spec"])) == []
        # The date is fixed: a retry after midnight resumes this night's batch.
        assert "$(" not in created["spec"]["entrypoint"]
        environment = settings(build(ROOT / "k8s/overlays/cpu-small"))
        outs.add(job("generate").parse(arguments(created["spec"]["entrypoint"], environment)[2:]).out)
    assert outs == {"s3://oasisgen/batches/2026-11-23", "s3://oasisgen/batches/2026-11-24"}


def test_a_night_that_is_there_already_is_no_failure(night: Night) -> None:
    assert night("2026-11-24", created=1, there=0)[0] == 0
    assert night("2026-11-24", created=1, there=1)[0] != 0


# --- what watches it ----------------------------------------------------------------------------------------------


def exported(gauges: list[str], counters: list[str]) -> set[str]:
    """The names under which Ray's exporter shows metrics of ray.util.metrics to Prometheus."""
    recorder = OpenTelemetryMetricRecorder()
    for name in gauges:
        recorder.register_gauge_metric(name, "")
        recorder.set_metric_value(name, {}, 1.0)
    for name in counters:
        recorder.register_counter_metric(name, "")
        recorder.set_metric_value(name, {}, 1.0)
    return set(re.findall(r"^(\w+)\{", generate_latest().decode(), re.M))


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    ours = exported(
        [f"oasisgen_{name}" for name in meters.GAUGES],
        ["oasisgen_batches_released_total", "oasisgen_batches_quarantined_total"],
    )
    rays = set(re.findall(r"\bray_\w+", Path(default_dashboard_panels.__file__).read_text()))
    rays |= {f"ray_{name}" for name in METRICS_GAUGES}
    dashboard = json.loads((ROOT / "k8s/monitoring/dashboard.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bray_(?!io_cluster)\w+", target["expr"])
    }
    assert asked - rays <= ours
    assert {name for name in ours if name.startswith("ray_oasisgen")} <= asked


def test_prometheus_looks_where_the_pods_are(overlay: list[Manifest]) -> None:
    manifests = build(ROOT / "k8s/monitoring")
    monitor = only(manifests, "PodMonitor")["spec"]
    [endpoint] = monitor["podMetricsEndpoints"]
    assert monitor["namespaceSelector"]["matchNames"] == ["oasisgen"]
    for where, template in pods(overlay):
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0].get("ports", [])}
        assert ports.get(endpoint["port"]) == (None if where.split(", ")[1] in {"submitter", "creator"} else 8080)
    # The policy lets in the namespace that the monitor lives in.
    policy = only(overlay, "NetworkPolicy", "metrics")["spec"]["ingress"][0]["from"][0]["namespaceSelector"]
    assert policy["matchLabels"] == {
        "kubernetes.io/metadata.name": only(manifests, "PodMonitor")["metadata"]["namespace"]
    }
    json.loads(only(manifests, "ConfigMap")["data"]["dashboard.json"])


# --- the folder itself --------------------------------------------------------------------------------------------


def test_every_folder_of_k8s_is_in_use() -> None:
    """A manifest that no overlay, component or note leads to is one that nobody checks."""
    named = "\n".join(path.read_text() for path in (ROOT / "k8s").rglob("kustomization.yaml"))
    for path in (ROOT / "k8s").rglob("kustomization.yaml"):
        folder = path.parent
        standing = folder.parent.name == "overlays" or folder.name == "monitoring"
        assert standing or f"{folder.name}" in named, folder
        for other in folder.iterdir():
            assert other.is_dir() or other == path or other.name in path.read_text(), other
    assert {path.name for path in (ROOT / "k8s/overlays").iterdir()} == set(OVERLAYS)


def test_a_wrong_manifest_is_caught_by_its_schema(overlay: list[Manifest]) -> None:
    train = only(overlay, "RayJob")
    wrong: dict[str, Any]
    for wrong in (
        {"waitForPodReady": True},
        {"preRuningDeadlineSeconds": 5},
        {"backoffLimit": "3"},
        {"rayClusterSpec": train["spec"]["rayClusterSpec"] | {"authOptions": {"mode": "tokens"}}},
        {"rayClusterSpec": {"workerGroupSpecs": []}},
    ):
        assert schema_problems(train | {"spec": train["spec"] | wrong}, schema("RayJob")), wrong
    cron = only(overlay, "CronJob")
    assert core_problems(cron | {"spec": cron["spec"] | {"concurencyPolicy": "Forbid"}}, KUBERNETES[-1])
    assert core_problems(cron | {"spec": cron["spec"] | {"successfulJobsHistoryLimit": "14"}}, KUBERNETES[-1])


def test_yaml_has_no_key_twice() -> None:
    """YAML parsers take the last one without a word."""

    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if key.value != "<<"]
            assert len(keys) == len(set(keys)), (node.start_mark, keys)
            return super().construct_mapping(node, deep)

    for path in [*(ROOT / "k8s").rglob("*.yaml"), ROOT / "cluster.yaml"]:
        list(yaml.load_all(path.read_text(), Strict))
