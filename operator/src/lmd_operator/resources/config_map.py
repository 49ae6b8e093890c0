"""The rendered files, in one immutable ConfigMap named after their content."""

from __future__ import annotations

from kubernetes.client.models.v1_config_map import V1ConfigMap

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import LABEL_REVISION
from lmd_operator.rendering.files import RenderedFiles
from lmd_operator.resources.common import metadata


def config_map_name(deployment: LargeModelDeployment, files: RenderedFiles) -> str:
    """Return the name that belongs to exactly these texts."""
    return f"{deployment.metadata.name}-{files.revision}"


def config_map(deployment: LargeModelDeployment, files: RenderedFiles) -> V1ConfigMap:
    """Return the ConfigMap. Changed texts make another one, so a running pod never sees its files change."""
    return V1ConfigMap(
        api_version="v1",
        kind="ConfigMap",
        metadata=metadata(deployment, config_map_name(deployment, files), {LABEL_REVISION: files.revision}),
        immutable=True,
        data=dict(files.texts),
    )
