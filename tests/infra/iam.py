"""What an IAM policy of k8s/iam allows, as far as these policies go: no Deny, and the operators that they use."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from tests.infra.conftest import ROOT

Statement = dict[str, Any]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def statements(name: str) -> list[Statement]:
    """Those of `k8s/iam/<name>.json`, each an Allow."""
    found = json.loads((ROOT / f"k8s/iam/{name}.json").read_text())["Statement"]
    assert all(each["Effect"] == "Allow" for each in found)
    return found


def holds(operator: str, wanted: list[str], given: str | None) -> bool:
    """Is a condition fulfilled by what a request says of a key? A key that it does not bear fulfils none."""
    if given is None:
        return False
    compare = {
        "StringEquals": lambda each: given == each,
        "ArnEquals": lambda each: fnmatchcase(given, each),
        "Bool": lambda each: given.lower() == each.lower(),
        "NumericLessThanEquals": lambda each: float(given) <= float(each),
    }
    return any(compare[operator](each) for each in wanted)


def allowed(name: str, action: str, resource: str, keys: Mapping[str, str] | None = None) -> bool:
    """May the holder of `k8s/iam/<name>.json` do this to that, in a request with these condition keys?"""
    return any(
        any(fnmatchcase(action, each) for each in as_list(statement["Action"]))
        and any(fnmatchcase(resource, each) for each in as_list(statement["Resource"]))
        and all(
            holds(operator, as_list(wanted), (keys or {}).get(key))
            for operator, conditions in statement.get("Condition", {}).items()
            for key, wanted in conditions.items()
        )
        for statement in statements(name)
    )


def denials(name: str, bucket: str) -> list[Statement]:
    """The policy turned round, for a bucket whose owner may do anything: what is not allowed is denied."""
    resources: dict[str, list[str]] = {}
    for statement in statements(name):
        for action in as_list(statement["Action"]):
            resources.setdefault(action, []).extend(
                each.replace(":::bucket", f":::{bucket}") for each in as_list(statement["Resource"])
            )
    reads_and_writes = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")
    return [
        {"Effect": "Deny", "Principal": "*", "Action": action, "NotResource": resources[action]}
        for action in reads_and_writes
    ]
