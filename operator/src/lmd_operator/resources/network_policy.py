"""The NetworkPolicy: requests and metrics may come in, nothing else, and nothing goes out unless the pod fetches its model.

TorchServe's frontend is old, and torchrun's rendezvous store listens on all interfaces without a password; neither may
be reached from another pod. A model pod reads its weights from a volume and talks to nobody; one that fetches them may
reach names and the ports of its source, and tells how far it is. Where a Job fetches them, that is for its pod alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from kubernetes.client.models.v1_label_selector import V1LabelSelector
from kubernetes.client.models.v1_network_policy import V1NetworkPolicy
from kubernetes.client.models.v1_network_policy_egress_rule import V1NetworkPolicyEgressRule
from kubernetes.client.models.v1_network_policy_ingress_rule import V1NetworkPolicyIngressRule
from kubernetes.client.models.v1_network_policy_port import V1NetworkPolicyPort
from kubernetes.client.models.v1_network_policy_spec import V1NetworkPolicySpec

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import LABEL_TASK, LABEL_TASK_OF, PORT_PROGRESS, TASKS
from lmd_operator.rendering.layout import POD
from lmd_operator.rendering.weights import needs_fetch, ports
from lmd_operator.resources.common import metadata, selector

DNS_PORT = 53


def network_policy(deployment: LargeModelDeployment) -> V1NetworkPolicy:
    """Return the policy of the object's pods."""
    return V1NetworkPolicy(
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        metadata=metadata(deployment, deployment.metadata.name),
        spec=V1NetworkPolicySpec(
            pod_selector=V1LabelSelector(match_labels=selector(deployment)),
            policy_types=["Ingress", "Egress"],
            ingress=[
                V1NetworkPolicyIngressRule(
                    ports=[V1NetworkPolicyPort(port=port, protocol="TCP") for port in _entrances(deployment)],
                )
            ],
            egress=_egress([] if deployment.spec.model.cache is not None else ports(deployment)),
        ),
    )


def task_policy(deployment: LargeModelDeployment) -> V1NetworkPolicy:
    """Return the policy of the pods of the object's Jobs: they reach their source, and are asked how far they are."""
    return V1NetworkPolicy(
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        metadata=metadata(deployment, f"{deployment.metadata.name}-{TASKS}", {LABEL_TASK: TASKS}),
        spec=V1NetworkPolicySpec(
            pod_selector=V1LabelSelector(match_labels={LABEL_TASK_OF: deployment.metadata.name}),
            policy_types=["Ingress", "Egress"],
            ingress=[V1NetworkPolicyIngressRule(ports=[V1NetworkPolicyPort(port=PORT_PROGRESS, protocol="TCP")])],
            egress=_egress(ports(deployment)),
        ),
    )


def _entrances(deployment: LargeModelDeployment) -> tuple[int, ...]:
    entrances = (POD.api_port, POD.operations_port)
    return (*entrances, PORT_PROGRESS) if needs_fetch(deployment) else entrances


def _egress(reached: Sequence[int]) -> list[V1NetworkPolicyEgressRule]:
    """Return what a fetch must reach. A policy knows no names of hosts and no phases of a pod, so ports are all it can say."""
    if not reached:
        return []
    names = [V1NetworkPolicyPort(port=DNS_PORT, protocol=protocol) for protocol in ("UDP", "TCP")]
    return [V1NetworkPolicyEgressRule(ports=[*names, *(V1NetworkPolicyPort(port=port, protocol="TCP") for port in reached)])]
