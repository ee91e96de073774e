"""What the API server lets into the namespace: our jobs, and nothing that only looks like them."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from oasisgen import __version__
from tests.infra.admission import defaulted, refusals
from tests.infra.conftest import ROOT, build, only, schema
from tests.infra.lint import Manifest

CREATOR = "system:serviceaccount:oasisgen:nightly"
OPERATOR = "system:serviceaccount:kuberay:kuberay-operator"
AUTOSCALER = "system:serviceaccount:oasisgen:generate"
Night = Callable[..., tuple[int, Manifest]]
Change = Callable[[Manifest], Any]


def policy(manifests: list[Manifest], name: str) -> Manifest:
    return only(manifests, "ValidatingAdmissionPolicy", f"oasisgen-{name}")


def stored(job: Manifest) -> Manifest:
    """As the API server has it when it asks."""
    return defaulted(copy.deepcopy(job), schema(job["kind"]))


def head(job: Manifest) -> Manifest:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]


def worker(job: Manifest) -> Manifest:
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


def pod(group: Manifest) -> Manifest:
    return group["template"]["spec"]


def container(group: Manifest) -> Manifest:
    return pod(group)["containers"][0]


def submitter(job: Manifest) -> Manifest:
    return job["spec"]["submitterPodTemplate"]["spec"]


def test_every_policy_is_bound_to_the_namespace_and_denies(overlay: list[Manifest]) -> None:
    policies = [each for each in overlay if each["kind"] == "ValidatingAdmissionPolicy"]
    bindings = {
        each["spec"]["policyName"]: each["spec"]
        for each in overlay
        if each["kind"] == "ValidatingAdmissionPolicyBinding"
    }
    assert {each["metadata"]["name"] for each in policies} == bindings.keys()
    assert len(policies) == 3
    namespace = only(overlay, "Namespace")["metadata"]["name"]
    for each in policies:
        assert each["spec"]["failurePolicy"] == "Fail"
        binding = bindings[each["metadata"]["name"]]
        assert binding["validationActions"] == ["Deny"]
        assert binding["matchResources"] == {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        }


def test_the_jobs_of_every_overlay_are_let_in(overlay: list[Manifest]) -> None:
    rule = policy(overlay, "rayjobs")
    assert refusals(rule, stored(only(overlay, "RayJob"))) == []
    # As the operator creates nights where it does that itself.
    template = only(overlay, "RayCronJob")["spec"]["jobTemplate"]
    night = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "nightly-x7k2p"}, "spec": template}
    assert refusals(rule, stored(night), user=OPERATOR) == []


def test_the_night_that_the_creator_makes_is_let_in(night: Night) -> None:
    rule = policy(build(ROOT / "k8s/overlays/cpu-small"), "rayjobs")
    assert refusals(rule, stored(night("2026-11-24")[1]), user=CREATOR) == []


def test_jobs_in_a_queue_are_let_in(variant: Callable[..., list[Manifest]]) -> None:
    for component in ("kueue", "volcano"):
        built = variant(
            {"# components: [../../components/kueue] # or volcano": f"components: [../../components/{component}]"}
        )
        job = stored(only(built, "RayJob"))
        rule = policy(built, "rayjobs")
        assert refusals(rule, job) == []
        admitted = copy.deepcopy(job)
        pod(worker(admitted))["nodeSelector"] = {"flavor": "gpu"}
        admitted["spec"]["suspend"] = False
        assert refusals(rule, admitted, job, "system:serviceaccount:kueue-system:kueue-controller-manager") == []


SECRET = {"secretRef": {"name": "another"}}
FROM_SECRET = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "another", "key": "key"}}}
REFUSED: dict[str, Change] = {
    "another image": lambda job: container(head(job)).update(image="evil"),
    "our image of another registry": lambda job: container(worker(job)).update(image="evil.example.com/oasisgen:0.1.0"),
    "another image to submit": lambda job: submitter(job)["containers"][0].update(image="evil"),
    "another image of the autoscaler": lambda job: job["spec"]["rayClusterSpec"]["autoscalerOptions"].update(
        image="evil"
    ),
    "a command": lambda job: container(head(job)).update(command=["sh", "-c", "env"]),
    "arguments": lambda job: container(worker(job)).update(args=["evil"]),
    "a hook": lambda job: container(head(job)).update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}),
    "another Secret": lambda job: container(head(job))["envFrom"].append(SECRET),
    "the other account's keys": lambda job: container(head(job))["envFrom"].append(
        {"secretRef": {"name": "s3-keys-generate"}}
    ),
    "a Secret beside the settings": lambda job: container(head(job))["envFrom"][0].update(SECRET),
    "a Secret's value": lambda job: container(worker(job)).update(env=[FROM_SECRET]),
    "a Secret for the submitter": lambda job: submitter(job)["containers"][0]["envFrom"].append(SECRET),
    "a Secret for the autoscaler": lambda job: job["spec"]["rayClusterSpec"]["autoscalerOptions"].update(
        envFrom=[SECRET]
    ),
    "a Secret as a file": lambda job: pod(head(job))["volumes"].append(
        {"name": "s", "secret": {"secretName": "another"}}
    ),
    "a projected token": lambda job: pod(worker(job))["volumes"].append({"name": "s", "projected": {"sources": []}}),
    "the machine's disk": lambda job: pod(worker(job))["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
    "two kinds of volume": lambda job: pod(head(job))["volumes"][0].update(hostPath={"path": "/"}),
    "a claim": lambda job: submitter(job)["volumes"].append({"name": "c", "persistentVolumeClaim": {"claimName": "c"}}),
    "an init container": lambda job: pod(head(job)).update(initContainers=[{"name": "x", "image": "evil"}]),
    "a second container": lambda job: pod(head(job))["containers"].append(
        {"name": "x", "image": "evil", "envFrom": []}
    ),
    "the machine's network": lambda job: pod(worker(job)).update(hostNetwork=True),
    "a machine by name": lambda job: pod(worker(job)).update(nodeName="control-plane"),
    "another account": lambda job: pod(head(job)).update(serviceAccountName="nightly"),
    "no account": lambda job: pod(worker(job)).pop("serviceAccountName"),
    "two accounts": lambda job: pod(worker(job)).update(serviceAccountName="generate"),
    "a token for workers": lambda job: pod(worker(job)).update(automountServiceAccountToken=True),
    "a token for the submitter": lambda job: submitter(job).pop("automountServiceAccountToken"),
    "another program": lambda job: job["spec"].update(entrypoint="python -c 'evil'"),
    "a second command": lambda job: job["spec"].update(entrypoint=job["spec"]["entrypoint"] + "; env"),
    "a second line": lambda job: job["spec"].update(entrypoint=job["spec"]["entrypoint"] + "\nenv"),
    "a substitution": lambda job: job["spec"].update(entrypoint=job["spec"]["entrypoint"] + " --out $(env)"),
    "another substitution": lambda job: job["spec"].update(entrypoint=job["spec"]["entrypoint"] + " --out `env`"),
    "a redirection": lambda job: job["spec"].update(entrypoint=job["spec"]["entrypoint"] + " > /tmp/x"),
    "a key in an argument": lambda job: job["spec"].update(
        entrypoint=job["spec"]["entrypoint"] + " --out $AWS_SECRET_ACCESS_KEY"
    ),
    "the other account's job": lambda job: job["spec"].update(entrypoint="python jobs/generate.py --count 1"),
    "no entrypoint": lambda job: job["spec"].pop("entrypoint"),
    "a runtime environment": lambda job: job["spec"].update(runtimeEnvYAML="pip: [evil]"),
    "another's cluster": lambda job: job["spec"].update(clusterSelector={"ray.io/cluster": "another"}),
    "no cluster": lambda job: job["spec"].pop("rayClusterSpec"),
    "somebody who submits by hand": lambda job: job["spec"].update(submissionMode="InteractiveMode"),
    "the operator's own submitter": lambda job: job["spec"].pop("submitterPodTemplate"),
    "no token": lambda job: job["spec"]["rayClusterSpec"].update(authOptions={"mode": "disabled"}),
    "a token of another's": lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(secretName="another"),
    "Redis with a Secret": lambda job: job["spec"]["rayClusterSpec"].update(
        gcsFaultToleranceOptions={"redisAddress": "r"}
    ),
    "an ingress": lambda job: head(job).update(enableIngress=True),
    "a load balancer": lambda job: head(job).update(serviceType="LoadBalancer"),
    "a service of its own": lambda job: head(job).update(headService={"spec": {"type": "NodePort"}}),
    "a shell in ray start": lambda job: head(job)["rayStartParams"].update({"num-cpus": "0; env"}),
    "a shell in a flag of ray start": lambda job: worker(job)["rayStartParams"].update({"x; env;": "0"}),
}


@cache
def training() -> tuple[Manifest, Manifest]:
    """The policy of the overlay gpu and its RayJob, which it lets in."""
    built = build(ROOT / "k8s/overlays/gpu")
    return policy(built, "rayjobs"), stored(only(built, "RayJob"))


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_of_our_shape_is_refused(what: str) -> None:
    rule, job = training()
    changed = copy.deepcopy(job)
    REFUSED[what](changed)
    assert changed != job
    assert refusals(rule, changed)
    assert refusals(rule, changed, job)  # nor by a later change


NOT_A_NIGHT: dict[str, Change] = {
    "training": lambda job: [
        each.update(serviceAccountName="train") for each in (submitter(job), pod(head(job)), pod(worker(job)))
    ],
    "another name": lambda job: job["metadata"].update(name="train"),
    "another program": lambda job: job["spec"].update(entrypoint="python jobs/train.py full"),
}


@pytest.mark.parametrize("what", NOT_A_NIGHT)
def test_the_nights_creator_creates_nights_alone(what: str, night: Night) -> None:
    rule = policy(build(ROOT / "k8s/overlays/cpu-small"), "rayjobs")
    job = stored(night("2026-11-24")[1])
    NOT_A_NIGHT[what](job)
    assert refusals(rule, job, user=CREATOR)


def test_the_nights_creator_cannot_train_under_a_nights_name() -> None:
    rule, job = copy.deepcopy(training())
    job["metadata"]["name"] = "nightly-2026-11-24"
    assert refusals(rule, job) == []
    assert refusals(rule, job, user=CREATOR) == ["the nights' creator creates nights"]


def test_a_job_of_the_last_image_ends_as_it_began(variant: Callable[..., list[Manifest]]) -> None:
    old = stored(only(build(ROOT / "k8s/overlays/gpu"), "RayJob"))
    built = variant({f"newTag: {__version__}": "newTag: 99.0.0"})
    rule = policy(built, "rayjobs")
    noted = copy.deepcopy(old)
    noted["metadata"]["finalizers"] = []
    stopped = copy.deepcopy(old)
    stopped["spec"]["suspend"] = True
    assert refusals(rule, noted, old, OPERATOR) == refusals(rule, stopped, old) == []
    assert refusals(rule, old)


def test_only_the_operator_creates_clusters_and_the_autoscaler_changes_their_size_alone(
    overlay: list[Manifest],
) -> None:
    rule = policy(overlay, "rayclusters")
    spec = stored(only(overlay, "RayJob"))["spec"]["rayClusterSpec"]
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "c"}, "spec": spec}
    assert refusals(rule, cluster, user=OPERATOR) == []
    for other in (CREATOR, AUTOSCALER, "somebody"):
        assert refusals(rule, cluster, user=other)

    def changed(change: Callable[[Manifest], Any]) -> list[str]:
        new = copy.deepcopy(cluster)
        change(new["spec"])
        assert new != cluster
        return refusals(rule, new, cluster, AUTOSCALER)

    def scale(new: Manifest) -> None:
        new["workerGroupSpecs"][0] |= {"replicas": 0, "scaleStrategy": {"workersToDelete": ["w"]}}

    assert changed(scale) == []
    for change in (
        lambda new: container(new["workerGroupSpecs"][0]).update(image="evil"),
        lambda new: pod(new["workerGroupSpecs"][0]).update(serviceAccountName="generate2"),
        lambda new: new["workerGroupSpecs"][0].update(maxReplicas=1000),
        lambda new: new["workerGroupSpecs"][0].pop("rayStartParams"),
        lambda new: new["workerGroupSpecs"].append({**new["workerGroupSpecs"][0], "groupName": "more"}),
        lambda new: container(new["headGroupSpec"]).update(image="evil"),
        lambda new: new.pop("authOptions"),
        lambda new: new.update(gcsFaultToleranceOptions={"redisAddress": "r"}),
    ):
        assert changed(change)


def test_a_pod_keeps_its_images(overlay: list[Manifest]) -> None:
    rule = policy(overlay, "pods")
    spec = pod(head(only(overlay, "RayJob"))) | {"initContainers": [{"name": "wait", "image": "oasisgen"}]}
    old: Manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head"}, "spec": spec}
    noted = copy.deepcopy(old)
    noted["metadata"]["labels"] = {"a": "b"}
    assert refusals(rule, noted, old, AUTOSCALER) == []
    for which in ("containers", "initContainers"):
        new = copy.deepcopy(old)
        new["spec"][which][0]["image"] = "evil"
        assert refusals(rule, new, old, AUTOSCALER)
    new = copy.deepcopy(old)
    del new["spec"]["initContainers"]
    assert refusals(rule, new, old, AUTOSCALER)
