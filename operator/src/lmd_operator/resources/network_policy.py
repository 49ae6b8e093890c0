"""The NetworkPolicy: requests and metrics may come in, nothing else, and nothing goes out.

TorchServe's frontend is old, and torchrun's rendezvous store listens on all interfaces without a password; neither may
be reached from another pod. A model pod reads its weights from a volume and talks to nobody.
"""

from __future__ import annotations

from kubernetes.client.models.v1_label_selector import V1LabelSelector
from kubernetes.client.models.v1_network_policy import V1NetworkPolicy
from kubernetes.client.models.v1_network_policy_ingress_rule import V1NetworkPolicyIngressRule
from kubernetes.client.models.v1_network_policy_port import V1NetworkPolicyPort
from kubernetes.client.models.v1_network_policy_spec import V1NetworkPolicySpec

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import PORT_INFERENCE, PORT_METRICS
from lmd_operator.resources.common import metadata, selector


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
                    ports=[V1NetworkPolicyPort(port=port, protocol="TCP") for port in (PORT_INFERENCE, PORT_METRICS)],
                )
            ],
            egress=[],
        ),
    )
