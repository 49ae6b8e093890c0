"""Configuration of the node's programs. Pure: paths and ports in, text out.

Many settings are for machines that are themselves containers or small virtual machines: cgroup v1, no CAP_SYS_RESOURCE,
no AppArmor, a little disk.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmd_plane.components import SERVICE_RANGE

NODE_NAME = "real-0"
NODE_ADDRESS = "10.89.0.1"
POD_RANGE = "10.244.0.0/24"
PAUSE_IMAGE = "localhost/lmd-pause:1"
STORAGE_CLASS = "local"
PACKAGES_TARGET = "/opt/lmd/lib/python3.11/site-packages"
"""Where an image without Python packages expects them."""
_DISABLED = (
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
)


@dataclass(frozen=True)
class NodeSite:
    """Where one node lives: a folder in the plane's, and short enough for local sockets."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return a file or folder of the node."""
        return self.folder / name

    @property
    def socket(self) -> Path:
        """Where containerd answers."""
        return self.folder / "containerd.sock"


def network(site: NodeSite) -> str:
    """Return the pods' network: a bridge, addresses from a range, no way out."""
    routes = [{"dst": "0.0.0.0/0"}]
    ipam = {"type": "host-local", "dataDir": str(site.path("addresses")), "ranges": [[{"subnet": POD_RANGE}]], "routes": routes}
    bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}, indent=2)


def containerd(site: NodeSite, plugins: Path, runc: str) -> str:
    """Return containerd's configuration, version 3."""
    disabled = ", ".join(f"'{name}'" for name in _DISABLED)
    return f"""\
version = 3
root = '{site.path("containerd")}'
state = '{site.path("state")}'
disabled_plugins = [{disabled}]
[grpc]
  address = '{site.socket}'
[ttrpc]
  address = '{site.socket}.ttrpc'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE_IMAGE}'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  enable_criu = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['{plugins}']
  conf_dir = '{site.path("cni")}'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  base_runtime_spec = '{site.path("spec.json")}'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = '{runc}'
  SystemdCgroup = false
"""


def runtime_spec(default: dict[str, Any], packages: Path | None) -> str:
    """Return the specification every container starts from: containerd's own, and the Python packages if any are mounted."""
    spec = dict(default)
    if packages:
        mount = {"destination": PACKAGES_TARGET, "type": "bind", "source": str(packages), "options": ["rbind", "ro"]}
        spec["mounts"] = [*default["mounts"], mount]
    return json.dumps(spec)


def kubelet(site: NodeSite, pki: Path, max_open_files: int) -> str:
    """Return the kubelet's configuration."""
    document = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{site.socket}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "maxOpenFiles": max_open_files,
        "address": NODE_ADDRESS,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "tlsCertFile": str(pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet.key"),
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}, "x509": {"clientCAFile": str(pki / "ca.crt")}},
        "authorization": {"mode": "AlwaysAllow"},
        "resolvConf": str(site.path("resolv.conf")),
        "podLogsDir": str(site.path("logs")),
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "shutdownGracePeriod": "0s",
    }
    return yaml.safe_dump(document)


def kube_proxy(access: Path) -> str:
    """Return kube-proxy's configuration."""
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(access)},
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": POD_RANGE,
        "mode": "nftables",
        "conntrack": {"maxPerCore": 0, "min": 0},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }
    return yaml.safe_dump(document)


def api_server_endpoints(port: int) -> dict[str, Any]:
    """Return what leads pods from the Service `kubernetes` to the relay; the API server itself knows no address for them."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "ports": [{"name": "https", "protocol": "TCP", "port": port}],
        "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
    }


def storage_class() -> dict[str, Any]:
    """Return the class of the node's volumes, for claims that name none; a claim gets one when a pod needs it."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def volume(name: str, folder: Path, size: str, modes: list[str], **spec: Any) -> dict[str, Any]:
    """Return a volume that is a folder of the node."""
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}]}]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": modes,
            "storageClassName": STORAGE_CLASS,
            "capacity": {"storage": size},
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
            **spec,
        },
    }


def namespace_commands() -> str:
    """Return the shell commands that make the namespace and hold it.

    Addresses of Services need some route before they are rewritten. There is no default route: a pull of an image that is
    not here fails at once instead of hanging. A bridge without ports is the node's own address.
    """
    return "; ".join(
        [
            "set -e",
            "ip link set lo up",
            "ip link add node0 type bridge",
            f"ip addr add {NODE_ADDRESS}/24 dev node0",
            "ip link set node0 up",
            f"ip route add {SERVICE_RANGE} dev node0",
            "echo 1 > /proc/sys/net/ipv4/ip_forward",
            "[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables",
            "exec sleep infinity",
        ]
    )
