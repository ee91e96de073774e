"""cluster.yaml, through Ray's own code and EC2's own description of what it takes."""

import copy
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from tests.infra.conftest import ROOT
from tests.infra.iam import allowed, as_list, statements

TEXT = (ROOT / "cluster.yaml").read_text()
CONFIG = yaml.safe_load(TEXT)
COMMANDS = [key for key in CONFIG if key.endswith("_commands")]


def diff(name: str) -> dict[str, Any]:
    """The keys that the comment `#<name>:` puts in the place of others."""
    [block] = re.findall(rf"^#{name}:\n((?:#  .*\n)+)", TEXT, re.M)
    return yaml.safe_load(re.sub(r"^#", "", block, flags=re.M))


def ec2_problems(node_config: dict[str, Any]) -> str:
    """What botocore says to a node_config as arguments of RunInstances."""
    given = copy.deepcopy(node_config)
    given.pop("SubnetIds", None)  # Ray takes one of them
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return ParamValidator().validate(given | {"MinCount": 1, "MaxCount": 1}, shape).generate_report()


def test_ray_takes_it() -> None:
    validate_config(prepare_config(copy.deepcopy(CONFIG)))
    for wrong in ({"idle_timeout_minute": 5}, {"head_node_type": "header"}, {"max_workers": "many"}):
        with pytest.raises((jsonschema.ValidationError, ValueError, TypeError)):
            validate_config(prepare_config(copy.deepcopy(CONFIG) | wrong))


def test_ec2_takes_its_machines() -> None:
    for name, node in CONFIG["available_node_types"].items():
        assert ec2_problems(node["node_config"]) == "", name
    fine = CONFIG["available_node_types"]["head"]["node_config"]
    for wrong in ({"InstanceTyp": "m6i.xlarge"}, {"InstanceMarketOptions": None}, {"SecurityGroupIds": "sg-1"}):
        assert ec2_problems(fine | wrong), wrong


def test_nothing_is_left_to_rays_defaults_that_should_not_be() -> None:
    for name, node in CONFIG["available_node_types"].items():
        # Without a profile the head would get a role with all of EC2 and S3, and workers none; without a group port 22
        # would be open to the world.
        given = node["node_config"]
        assert {"ImageId", "IamInstanceProfile", "SecurityGroupIds"} <= given.keys(), name
        assert given["MetadataOptions"]["HttpTokens"] == "required"
        assert given["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
    assert not CONFIG["setup_commands"] + CONFIG["head_setup_commands"] + CONFIG["worker_setup_commands"]
    assert {"image", "container_name"} <= CONFIG["docker"].keys()
    assert "--env RAY_AUTH_MODE=token" in CONFIG["docker"]["run_options"]
    start = " ".join(CONFIG["head_start_ray_commands"])
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert "--dashboard-host=127.0.0.1" in start


@pytest.mark.parametrize("key", COMMANDS)
def test_its_commands_are_shell(key: str) -> None:
    for command in CONFIG[key]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_spot_comes_first_and_on_demand_when_there_is_none() -> None:
    """Asked of the autoscaler that `ray up` starts."""
    nodes = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=node.get("min_workers", 0),
            max_worker_nodes=node.get("max_workers", 0),
            priority=node.get("priority", 0),
            resources=node["resources"],
        )
        for name, node in CONFIG["available_node_types"].items()
    }

    def started(refused: dict[str, float], machines: int) -> Counter[str]:
        worker = ResourceRequestUtil.make({"CPU": 4, "GPU": 1})
        reply = ResourceDemandScheduler(None).schedule(
            SchedulingRequest(
                disable_launch_config_check=True,
                node_type_configs=nodes,
                max_num_nodes=CONFIG["max_workers"],  # no head counted
                resource_requests=ResourceRequestUtil.group_by_count([worker] * machines),
                recoverable_resource_availabilities=refused,
            )
        )
        return Counter({launch.instance_type: launch.count for launch in reply.to_launch})

    assert started({}, 2) == {"gpu_spot": 2}
    assert started({"gpu_spot": 0.0}, 2) == {"gpu_on_demand": 2}
    assert started({}, 9).total() == CONFIG["max_workers"]


def test_bootstrap_and_nodes_on_a_stand_in_for_ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts the key of SSH there
    config = copy.deepcopy(CONFIG)
    with mock_aws():
        ec2 = boto3.resource("ec2", region_name=config["provider"]["region"])
        [network] = ec2.vpcs.all()
        group = ec2.create_security_group(GroupName="oasisgen", Description="oasisgen", VpcId=network.id)
        iam = boto3.client("iam")
        for node in config["available_node_types"].values():
            node["node_config"]["SecurityGroupIds"] = [group.id]
            profile = node["node_config"]["IamInstanceProfile"]["Arn"].split("/")[-1]
            if profile not in {
                each["InstanceProfileName"] for each in iam.list_instance_profiles()["InstanceProfiles"]
            }:
                iam.create_instance_profile(InstanceProfileName=profile)

        ready = bootstrap_aws(prepare_config(config))
        assert iam.list_roles()["Roles"] == []  # none of Ray's own making
        assert [each.group_name for each in ec2.security_groups.all() if each.id != group.id] == ["default"]

        provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
        for name, node in ready["available_node_types"].items():
            tags = {"ray-node-type": "head" if name == "head" else "worker", "ray-user-node-type": name}
            provider.create_node(copy.deepcopy(node["node_config"]), tags, 1)
        made = {
            next(tag["Value"] for tag in each.tags if tag["Key"] == "ray-user-node-type"): each
            for each in ec2.instances.all()
        }
        assert {name: each.instance_lifecycle for name, each in made.items()} == {
            "head": None,
            "gpu_on_demand": None,
            "gpu_spot": "spot",
        }
        for name, each in made.items():
            role = "head" if name == "head" else "worker"
            assert each.iam_instance_profile["Arn"].endswith(f"oasisgen-{role}"), name
            assert {"Key": "ray-cluster-name", "Value": "oasisgen"} in each.tags


# The condition keys that each resource of a RunInstances request bears (AWS's Service Authorization Reference, Amazon
# EC2, 2026: those of them that a policy of ours may want). A condition on a key that a resource never bears allows
# nothing.
KEYS = {
    "instance": {
        "ec2:InstanceType",
        "ec2:InstanceProfile",
        "ec2:InstanceMarketType",
        "ec2:MetadataHttpTokens",
        "aws:RequestTag/ray-cluster-name",
    },
    "volume": {"ec2:Encrypted", "ec2:VolumeSize", "ec2:VolumeType"},
    "image": {"ec2:Owner", "ec2:ImageID", "ec2:Public"},
    "network-interface": {"ec2:Subnet", "ec2:Vpc"},
    "security-group": {"ec2:SecurityGroupID", "ec2:Vpc"},
    "subnet": {"ec2:SubnetID", "ec2:Vpc"},
    "key-pair": {"ec2:KeyPairName"},
    "spot-instances-request": set(),
}
ACCOUNT, REGION = "123456789012", CONFIG["provider"]["region"]
OWN = {"ec2:ResourceTag/ray-cluster-name": CONFIG["cluster_name"]}


def arn(kind: str, name: str, region: str = REGION) -> str:
    return f"arn:aws:ec2:{region}:{'' if kind == 'image' else ACCOUNT}:{kind}/{name}"


def starts(config: dict[str, Any], region: str = REGION, tag: str | None = CONFIG["cluster_name"]) -> bool:
    """May the head start a machine of this node_config? EC2 asks for every resource that the request touches."""
    [disk] = config["BlockDeviceMappings"]
    market = config.get("InstanceMarketOptions", {}).get("MarketType")
    machine = {
        "ec2:InstanceType": config["InstanceType"],
        "ec2:InstanceProfile": config.get("IamInstanceProfile", {}).get("Arn"),
        "ec2:MetadataHttpTokens": config.get("MetadataOptions", {}).get("HttpTokens", "optional"),
        "ec2:InstanceMarketType": market or "on-demand",
        "aws:RequestTag/ray-cluster-name": tag,
    }
    volume = {
        "ec2:Encrypted": str(disk["Ebs"].get("Encrypted", False)),
        "ec2:VolumeSize": str(disk["Ebs"]["VolumeSize"]),
    }
    touched = [("instance", "*", machine), ("volume", "*", volume), ("image", config["ImageId"], {})]
    touched += [("network-interface", "*", {}), ("subnet", "subnet-1", {}), ("key-pair", "ray-autoscaler_1", {})]
    touched += [("security-group", group, {}) for group in config["SecurityGroupIds"]]
    touched += [("spot-instances-request", "*", {})] if market == "spot" else []
    return all(
        allowed("launcher", "ec2:RunInstances", arn(kind, name, region), {key: v for key, v in keys.items() if v})
        for kind, name, keys in touched
    )


def test_the_head_starts_the_workers_of_cluster_yaml_and_nothing_else() -> None:
    workers = [node for name, node in CONFIG["available_node_types"].items() if name != "head"]
    for worker in workers:
        assert starts(worker["node_config"])
    fine = workers[0]["node_config"]
    group, disk = fine["SecurityGroupIds"], fine["BlockDeviceMappings"][0]
    admin = {"Arn": f"arn:aws:iam::{ACCOUNT}:instance-profile/admin"}
    wrong: dict[str, Any]
    for wrong in (
        {"InstanceType": "p5.48xlarge"},
        {"ImageId": "ami-11111111111111111"},
        {"IamInstanceProfile": admin},
        {"IamInstanceProfile": {}},
        {"MetadataOptions": {"HttpTokens": "optional"}},
        {"MetadataOptions": {}},
        {"SecurityGroupIds": [*group, "sg-11111111111111111"]},
        {"BlockDeviceMappings": [{**disk, "Ebs": {**disk["Ebs"], "Encrypted": False}}]},
        {"BlockDeviceMappings": [{**disk, "Ebs": {**disk["Ebs"], "VolumeSize": 16000}}]},
    ):
        assert not starts(fine | wrong), wrong
    assert not starts(fine, region="us-east-1")
    assert not starts(fine, tag="another")
    assert not starts(fine, tag=None)


def test_a_policy_asks_of_each_resource_what_ec2_knows_of_it() -> None:
    asked = [each for each in statements("launcher") if "ec2:RunInstances" in as_list(each["Action"])]
    for statement in asked:
        kinds = {re.split(r"[:/]", each)[5] for each in as_list(statement["Resource"])}
        for key in (key for conditions in statement.get("Condition", {}).values() for key in conditions):
            assert all(key in KEYS[kind] for kind in kinds), (statement["Sid"], key)
    assert {re.split(r"[:/]", r)[5] for each in asked for r in as_list(each["Resource"])} == KEYS.keys()


def test_the_heads_rights_end_at_its_own_cluster() -> None:
    for action in ("ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances"):
        assert allowed("launcher", action, arn("instance", "i-1"), OWN)
        assert not allowed("launcher", action, arn("instance", "i-1"), {"ec2:ResourceTag/ray-cluster-name": "other"})
        assert not allowed("launcher", action, arn("instance", "i-1"))
    worker = CONFIG["available_node_types"]["gpu_spot"]["node_config"]["IamInstanceProfile"]["Arn"]
    role = f"arn:aws:iam::{ACCOUNT}:role/{worker.split('/')[-1]}"
    assert allowed("launcher", "iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"})
    assert not allowed("launcher", "iam:PassRole", role, {"iam:PassedToService": "lambda.amazonaws.com"})
    assert not allowed("launcher", "iam:PassRole", role.replace("worker", "admin"))
    actions = [action for each in statements("launcher") for action in as_list(each["Action"])]
    assert not {"*", "ec2:*", "iam:*"} & set(actions)


def test_the_head_cannot_make_a_machine_its_own_by_a_tag() -> None:
    own = {"aws:RequestTag/ray-cluster-name": CONFIG["cluster_name"]}
    assert allowed("launcher", "ec2:CreateTags", arn("instance", "*"), own | {"ec2:CreateAction": "RunInstances"})
    assert not allowed("launcher", "ec2:CreateTags", arn("instance", "i-1"), own)
    for kind in ("image", "security-group", "vpc"):
        assert not allowed("launcher", "ec2:CreateTags", arn(kind, "x"), {"ec2:CreateAction": "RunInstances"})
    assert allowed("launcher", "ec2:CreateTags", arn("instance", "i-1"), OWN)


@pytest.mark.parametrize("name", ["gcp", "local"])
def test_the_other_providers_differ_by_what_the_comments_say(name: str) -> None:
    config = copy.deepcopy(CONFIG) | diff(name)
    if name == "local":
        del config["head_node_type"], config["available_node_types"]
    ready = prepare_config(config)
    validate_config(ready)
    assert ready["provider"]["type"] == name
    assert len(ready["available_node_types"]) == {"gcp": 3, "local": 1}[name]
