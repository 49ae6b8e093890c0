"""The CustomResourceDefinition, generated from the models. `python -m lmd_operator.api.crd` prints it."""

from __future__ import annotations

from typing import Any

import yaml

from lmd_operator.api.status import Status
from lmd_operator.api.structural import structural
from lmd_operator.api.v1alpha1 import GROUP, KIND, NAME_MAX_LENGTH, PLURAL, SHORT_NAME, SINGULAR, VERSION, LargeModelDeployment, Spec

NAME_RULE = f"self.metadata.name.size() <= {NAME_MAX_LENGTH} && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
NAME_MESSAGE = (
    f"metadata.name must be a lower-case DNS label of at most {NAME_MAX_LENGTH} characters that starts with a letter, for example llama-70b"
)


def _condition(kind: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].status'


COLUMNS: list[dict[str, Any]] = [
    {"name": "Ready", "type": "string", "jsonPath": _condition("Ready"), "description": "Whether enough replicas answer requests."},
    {
        "name": "Reason",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].reason',
        "description": "Why it is ready, or why not.",
    },
    {"name": "Replicas", "type": "integer", "jsonPath": ".status.readyReplicas", "description": "Replicas that answer requests."},
    {"name": "Desired", "type": "integer", "jsonPath": ".spec.replicas", "description": "Replicas that are asked for."},
    {"name": "Strategy", "type": "string", "jsonPath": ".status.plan.strategy", "description": "The parallelism strategy that runs."},
    {"name": "GPUs", "type": "integer", "jsonPath": ".status.plan.gpusPerReplica", "description": "Devices per replica."},
    {"name": "URL", "type": "string", "jsonPath": ".status.url", "priority": 1, "description": "Base URL inside the cluster."},
    {
        "name": "Verified",
        "type": "string",
        "jsonPath": _condition("ParallelismVerified"),
        "priority": 1,
        "description": "What runs is what was planned.",
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "description": "Time since creation."},
]


def custom_resource_definition() -> dict[str, Any]:
    """Return the CRD as plain data, ready to be written as YAML."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": COLUMNS,
                    "schema": {"openAPIV3Schema": _schema()},
                }
            ],
        },
    }


def _schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": (LargeModelDeployment.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this API."},
            "kind": {"type": "string", "description": "LargeModelDeployment."},
            "metadata": {"type": "object"},
            "spec": structural(Spec),
            "status": structural(Status, defaults=False),
        },
        "x-kubernetes-validations": [{"rule": NAME_RULE, "message": NAME_MESSAGE}],
    }


def to_yaml() -> str:
    """Return the CRD as YAML with its keys in the order above."""
    header = "# Generated from operator/src/lmd_operator/api by `make generate`; do not edit.\n"
    return header + yaml.dump(custom_resource_definition(), Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """YAML without anchors: the same rule list may stand in several places."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    print(to_yaml(), end="")
