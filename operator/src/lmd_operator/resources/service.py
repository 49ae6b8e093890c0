"""The Service clients talk to. Management, metrics and gRPC are not part of it."""

from __future__ import annotations

from kubernetes.client.models.v1_service import V1Service
from kubernetes.client.models.v1_service_port import V1ServicePort
from kubernetes.client.models.v1_service_spec import V1ServiceSpec

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import PORT_INFERENCE
from lmd_operator.resources.common import metadata, selector


def service(deployment: LargeModelDeployment) -> V1Service:
    """Return the Service in front of the ready replicas."""
    endpoint = deployment.spec.endpoint
    meta = metadata(deployment, deployment.metadata.name)
    meta.annotations = dict(endpoint.service.annotations) or None
    return V1Service(
        api_version="v1",
        kind="Service",
        metadata=meta,
        spec=V1ServiceSpec(
            type=endpoint.service.type,
            selector=selector(deployment),
            ports=[V1ServicePort(name=PORT_INFERENCE, port=endpoint.port, target_port=PORT_INFERENCE, protocol="TCP")],
        ),
    )
