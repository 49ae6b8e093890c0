"""What every pod of ours may not do: the restricted Pod Security Standard, with a root file system that cannot be written."""

from __future__ import annotations

from kubernetes.client.models.v1_capabilities import V1Capabilities
from kubernetes.client.models.v1_pod_security_context import V1PodSecurityContext
from kubernetes.client.models.v1_seccomp_profile import V1SeccompProfile
from kubernetes.client.models.v1_security_context import V1SecurityContext

USER_ID = 10001


def of_pod() -> V1PodSecurityContext:
    """Return what holds for all containers; volumes belong to the group."""
    return V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=USER_ID,
        run_as_group=USER_ID,
        fs_group=USER_ID,
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=V1SeccompProfile(type="RuntimeDefault"),
    )


def of_container() -> V1SecurityContext:
    """Return what can only be said of each container."""
    return V1SecurityContext(allow_privilege_escalation=False, read_only_root_filesystem=True, capabilities=V1Capabilities(drop=["ALL"]))
