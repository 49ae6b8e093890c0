"""What a cluster of KUBECONFIG may lack is said with the remedy, and nothing of a guest stays there."""

from __future__ import annotations

from pathlib import Path

import pytest
from lmd_plane import foreign
from lmd_plane.client import DEFINITIONS
from lmd_plane.errors import PlaneError
from lmd_plane.node.config import STORAGE_CLASS

pytestmark = pytest.mark.node

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"


def test_a_guest_says_what_is_missing_and_leaves_nothing(node, tmp_path: Path) -> None:
    api, access = node.plane.api, node.plane.kubeconfig
    definitions = api.get(DEFINITIONS)["items"]
    with pytest.raises(PlaneError, match="no default StorageClass"), foreign.guest(access, tmp_path, "lmd-nobody:1", print):
        pass
    node.offer_volumes(1)
    try:
        remedy = "node real-0 has no image lmd-nobody:1: .* `kind load docker-image lmd-nobody:1`"
        with pytest.raises(PlaneError, match=remedy), foreign.guest(access, tmp_path, "lmd-nobody:1", print):
            pass
    finally:
        api.delete(f"{CLASSES}/{STORAGE_CLASS}")
    names = {each["metadata"]["name"] for each in api.get("/api/v1/namespaces")["items"]}
    assert not {name for name in names if name.startswith(foreign.PREFIX)}
    assert [each["metadata"]["uid"] for each in api.get(DEFINITIONS)["items"]] == [each["metadata"]["uid"] for each in definitions]
