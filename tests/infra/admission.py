"""ValidatingAdmissionPolicies as an API server evaluates them, with Google's own CEL."""

import copy
from typing import Any

from cel_expr_python import cel

from tests.infra.lint import Manifest

ENVIRONMENT = cel.NewEnv(variables=dict.fromkeys(("object", "oldObject", "request", "variables"), cel.Type.DYN))


def defaulted(value: Any, schema: Any) -> Any:
    """`value` with the defaults of a CRD's schema, which an API server sets before it asks its policies."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        filled = {name: copy.deepcopy(each["default"]) for name, each in properties.items() if "default" in each}
        filled |= value
        return {name: defaulted(each, properties.get(name, {})) for name, each in filled.items()}
    if isinstance(value, list):
        return [defaulted(each, schema.get("items", {})) for each in value]
    return value


def evaluated(expression: str, data: dict[str, Any]) -> Any:
    """The value of an expression, or None where it fails; a text that does not compile is an error of the test."""
    value = ENVIRONMENT.compile(expression).eval(data=data)
    return None if value.type() == cel.Type.ERROR else value.plain_value()


def refusals(policy: Manifest, new: Manifest, old: Manifest | None = None, user: str = "somebody") -> list[str]:
    """The messages of a policy about a request to create (or, with `old`, to update) an object; none lets it in."""
    spec = policy["spec"]
    operation = "CREATE" if old is None else "UPDATE"
    [rule] = spec["matchConstraints"]["resourceRules"]
    if operation not in rule["operations"]:
        return []
    request = {"operation": operation, "userInfo": {"username": user}}
    data: dict[str, Any] = {"object": new, "oldObject": old, "request": request, "variables": {}}
    conditions = [evaluated(each["expression"], data) for each in spec.get("matchConditions", [])]
    if None in conditions and spec["failurePolicy"] == "Fail" and False not in conditions:
        return ["a match condition failed"]
    if False in conditions:
        return []
    for variable in spec.get("variables", []):
        value = evaluated(variable["expression"], data)
        if value is not None:  # one that failed fails whoever asks for it
            data["variables"][variable["name"]] = value
    return [each["message"] for each in spec["validations"] if evaluated(each["expression"], data) is not True]
