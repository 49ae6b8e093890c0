"""`lmd why`: why an object of the cluster is not Ready, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from lmd_operator.api.status import Status
from lmd_operator.commands.common import fail
from lmd_operator.errors import LmdError
from lmd_operator.status.sentence import sentence


def why(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a LargeModelDeployment.")],
    namespace: Annotated[str | None, typer.Option("-n", "--namespace", help="Default: that of the kubeconfig's context.")] = None,
) -> None:
    """Say in one sentence why an object in the cluster is not Ready, and what to do."""
    from lmd_operator.cluster.connection import context_namespace
    from lmd_operator.commands.live import read_object

    place = namespace or context_namespace()
    try:
        found = read_object(place, name)
    except LmdError as error:
        fail(str(error))
    if found is None:
        fail(f"there is no LargeModelDeployment {name} in the namespace {place}: name another, or another --namespace")
    status = Status.model_validate(found.get("status") or {}, extra="ignore", by_alias=True, by_name=False)
    print(sentence(name, status, found["metadata"].get("generation", 0)))
