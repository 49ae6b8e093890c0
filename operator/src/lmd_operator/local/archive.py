"""What a pod will make of an object's archive, shown before there is a pod: the worker itself merges, on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.local.worker import ask

NEEDED = ("MANIFEST.json", "model-config.yaml", "ds-config.json")


def local_archive(deployment: LargeModelDeployment, claims: Mapping[str, Path]) -> Path | None:
    """Return where the object's archive is on this machine; None when it has none, or its claim is not named here."""
    handler, source = deployment.spec.handler, deployment.spec.model.source
    if handler is None or handler.archive is None:
        return None
    if source.persistent_volume_claim is not None:
        root = claims.get(source.persistent_volume_claim.claim_name)
        return None if root is None else root / handler.archive
    found = Path(source.path.path, handler.archive) if source.path is not None else None
    return found if found is not None and found.exists() else None


def missing_claim(deployment: LargeModelDeployment, claims: Mapping[str, Path]) -> str | None:
    """Return the claim that would have to be named to see what is merged, or None when nothing is missing."""
    handler, claim = deployment.spec.handler, deployment.spec.model.source.persistent_volume_claim
    has_archive = handler is not None and handler.archive is not None
    return claim.claim_name if has_archive and claim is not None and claim.claim_name not in claims else None


def merged_files(texts: Mapping[str, str], archive: Path) -> dict[str, str]:
    """Return the files that the pod merges, and a table of who wins. Raises `LocalRunError` with the worker's words."""
    given = json.dumps({name: texts[name] for name in NEEDED})
    return ask("merge", str(archive), given=given)
