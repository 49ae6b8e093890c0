"""Command lines of the control plane's programs. Pure but for this machine's own address: paths and ports in, arguments out."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

LOOPBACK = "127.0.0.1"
ADVERTISED = "192.0.2.1"
"""An address for documentation: the API server refuses to advertise loopback, and nothing here follows what it advertises."""
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
NODE_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
NODE_MONITOR_GRACE_SECONDS = 120
"""How long a node's lease may be stale: a busy machine, or a paused etcd, is no dead node."""

DATA = Path(__file__).parent
STAGES = DATA / "stages.yaml"
AUDIT_POLICY = DATA / "audit-policy.yaml"


@dataclass(frozen=True)
class Site:
    """Where one plane lives: its folder and its ports on loopback."""

    folder: Path
    etcd_port: int
    etcd_peer_port: int
    api_port: int

    @property
    def api_url(self) -> str:
        """Base URL of the API server."""
        return f"https://{LOOPBACK}:{self.api_port}"

    @property
    def etcd_url(self) -> str:
        """Base URL of etcd."""
        return f"http://{LOOPBACK}:{self.etcd_port}"

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.folder / "pki"

    @property
    def egress_config(self) -> Path:
        """How the API server gets to nodes and pods."""
        return self.folder / "egress.json"

    @property
    def egress_socket(self) -> Path:
        """Where a real node's relay answers; nobody does without one."""
        return self.folder / "egress.sock"

    @property
    def audit_log(self) -> Path:
        """What the API server was asked, a JSON object a line."""
        return self.folder / "audit.log"

    def kubeconfig(self, user: str) -> Path:
        """Return the kubeconfig of a user."""
        return self.folder / f"{user}.kubeconfig"

    def log(self, component: str) -> Path:
        """Return what a component said."""
        return self.folder / f"{component}.log"


def egress(site: Site) -> str:
    """Return the API server's way to kubelets, pods and Services: by CONNECT over a local socket.

    A real node is in a network namespace that this machine has no route to, and must stay so. Etcd is reached as before.
    """
    transport = {"uds": {"udsName": str(site.egress_socket)}}
    connection = {"proxyProtocol": "HTTPConnect", "transport": transport}
    selections = [{"name": "cluster", "connection": connection}]
    document = {"apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration", "egressSelections": selections}
    return json.dumps(document, indent=2)


def _etcd(site: Site) -> list[str]:
    peers = f"http://{LOOPBACK}:{site.etcd_peer_port}"
    return [
        "--name=plane",
        f"--data-dir={site.folder / 'etcd'}",
        "--unsafe-no-fsync",  # what is written survives the death of the process, which is all that tests do to it
        f"--listen-client-urls={site.etcd_url}",
        f"--advertise-client-urls={site.etcd_url}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=plane={peers}",
        "--quota-backend-bytes=2147483648",
        "--log-level=warn",
    ]


def _apiserver(site: Site) -> list[str]:
    return [
        f"--etcd-servers={site.etcd_url}",
        f"--bind-address={LOOPBACK}",
        f"--secure-port={site.api_port}",
        f"--advertise-address={ADVERTISED}",
        "--endpoint-reconciler-type=none",
        f"--client-ca-file={site.pki / 'ca.crt'}",
        f"--tls-cert-file={site.pki / 'kube-apiserver.crt'}",
        f"--tls-private-key-file={site.pki / 'kube-apiserver.key'}",
        f"--egress-selector-config-file={site.egress_config}",
        f"--kubelet-certificate-authority={site.pki / 'ca.crt'}",
        f"--kubelet-client-certificate={site.pki / 'kube-apiserver.crt'}",  # the kubelet trusts whom the authority trusts
        f"--kubelet-client-key={site.pki / 'kube-apiserver.key'}",
        "--kubelet-preferred-address-types=InternalIP",  # names of nodes are not resolved here
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={site.pki / 'service-accounts.pub'}",
        f"--service-account-signing-key-file={site.pki / 'service-accounts.key'}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
        f"--audit-log-path={site.audit_log}",
        f"--audit-policy-file={AUDIT_POLICY}",
        "--audit-log-maxsize=4000",  # MB: one file, so that offsets into it stay good
        "--profiling=false",
    ]


def _controller_manager(site: Site) -> list[str]:
    return [
        f"--kubeconfig={site.kubeconfig('kube-controller-manager')}",
        f"--root-ca-file={site.pki / 'ca.crt'}",
        f"--service-account-private-key-file={site.pki / 'service-accounts.key'}",
        "--use-service-account-credentials=true",
        f"--cluster-signing-cert-file={site.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={site.pki / 'ca.key'}",
        f"--node-monitor-grace-period={NODE_MONITOR_GRACE_SECONDS}s",
        "--leader-elect=false",
        "--secure-port=0",
        "--profiling=false",
        "--kube-api-qps=300",  # the defaults make a few hundred pods take half a minute
        "--kube-api-burst=600",
    ]


def _scheduler(site: Site) -> list[str]:
    return [
        f"--kubeconfig={site.kubeconfig('kube-scheduler')}",
        "--leader-elect=false",
        "--secure-port=0",
        "--profiling=false",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


def own_address() -> str | None:
    """Return an IPv4 address of this machine that is not loopback, which an EndpointSlice must not hold; None where it has none."""
    up = (name for name, state in psutil.net_if_stats().items() if state.isup)
    own = (each.address for name in up for each in psutil.net_if_addrs().get(name, ()) if each.family is socket.AF_INET)
    return next((address for address in own if not ipaddress.ip_address(address).is_loopback), None)


def _kwok(site: Site) -> list[str]:
    return [
        f"--kubeconfig={site.kubeconfig('kwok')}",
        f"--config={STAGES}",
        "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        "--node-lease-duration-seconds=40",
        f"--node-ip={own_address() or ADVERTISED}",  # of pods too: who asks one is refused at once, and nothing leaves the machine
    ]


ARGUMENTS: Mapping[str, Callable[[Site], list[str]]] = {
    "etcd": _etcd,
    "kube-apiserver": _apiserver,
    "kube-controller-manager": _controller_manager,
    "kube-scheduler": _scheduler,
    "kwok": _kwok,
}
"""Arguments by component, in the order of starting."""

USERS: Mapping[str, str] = {
    "admin": "/O=system:masters/CN=admin",
    "kube-controller-manager": "/CN=system:kube-controller-manager",
    "kube-scheduler": "/CN=system:kube-scheduler",
    "kwok": "/O=system:masters/CN=kwok",
}
"""Certificate subject by user; every one gets a kubeconfig."""

SERVER_NAMES = (
    "DNS:localhost",
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    "DNS:kubernetes.default.svc.cluster.local",
    f"IP:{LOOPBACK}",
    f"IP:{SERVICE_ADDRESS}",
)


def fake_node(index: int) -> dict[str, Any]:
    """Return a node with eight GPUs that KWOK keeps alive; ordinary pods may land on it."""
    name = f"gpu-{index}"
    capacity = {"cpu": "96", "memory": "1Ti", "ephemeral-storage": "1Ti", "pods": "110", "nvidia.com/gpu": "8"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "fake-8-gpu",
                "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
                "topology.kubernetes.io/region": "fake",
                "topology.kubernetes.io/zone": f"zone-{index % 3}",
            },
        },
        "status": {"allocatable": capacity, "capacity": capacity},
    }
