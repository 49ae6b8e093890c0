"""The Service clients talk to: the API of the front doors, by number, as ports of sidecars are not found by name everywhere."""

from __future__ import annotations

from kubernetes.client.models.v1_service import V1Service
from kubernetes.client.models.v1_service_port import V1ServicePort
from kubernetes.client.models.v1_service_spec import V1ServiceSpec

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import PORT_API
from lmd_operator.rendering.layout import POD
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
            ports=[V1ServicePort(name=PORT_API, port=endpoint.port, target_port=POD.api_port, protocol="TCP")],
        ),
    )
