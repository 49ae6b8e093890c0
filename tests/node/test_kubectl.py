"""kubectl and the pods of a real node: the API server finds its way to them, and they find theirs to it."""

from __future__ import annotations

import urllib.request

import pytest
from lmd_plane.client import eventually
from lmd_plane.kubectl import Kubectl

from lmd_operator.version import VERSION

pytestmark = pytest.mark.node

IMAGE = f"lmd-worker:{VERSION}"
POD = "curious"
PORT = 8000
CURIOUS = """
import http.server, os, ssl, sys, urllib.request

trust = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}/version"
with urllib.request.urlopen(url, timeout=30, context=trust) as answer:
    print("the API server said", answer.status, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
"""What the pod runs: it asks the Service `kubernetes`, then answers on its own loopback, which only a forwarded port leads to."""


def test_kubectl_reaches_into_pods_and_pods_reach_the_api_server(node) -> None:
    kubectl = Kubectl(str(node.plane.binaries["kubectl"]), node.plane.kubeconfig, "default")
    container = {"name": "one", "image": IMAGE, "command": ["python3", "-c", CURIOUS, str(PORT)]}
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD}, "spec": spec})
    try:
        eventually(lambda: "said 200" in kubectl.run("logs", POD).stdout, "answer of the API server to the pod")
        assert kubectl("exec", POD, "--", "cat", "/proc/1/cmdline").startswith("python3\0-c\0")
        with kubectl.forwarded(f"pod/{POD}", PORT) as port:

            def answer() -> int:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                    return int(answer.status)

            assert eventually(answer, "answer of the pod") == 200
    finally:
        kubectl("delete", "pod", POD, "--wait=true")
