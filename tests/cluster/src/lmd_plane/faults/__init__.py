"""A proxy before the API server that delays, loses, refuses, cuts and freezes what a client asks, by rules.

with FaultProxy(plane.kubeconfig, folder) as proxy:
    proxy.add(Match(verb="patch", resource="deployments"), Reply(409, "Conflict"), nth=2)
    start_operator(proxy.kubeconfig(token=token))
"""

from lmd_plane.faults.proxy import FaultProxy
from lmd_plane.faults.requests import Exchange, Match, Request, request_of
from lmd_plane.faults.rules import CutWatch, Delay, DelayEvents, Drop, DropEvents, FailWatch, FreezeWatch, LoseResponse, Reply, Rule

__all__ = [
    "CutWatch",
    "Delay",
    "DelayEvents",
    "Drop",
    "DropEvents",
    "Exchange",
    "FailWatch",
    "FaultProxy",
    "FreezeWatch",
    "LoseResponse",
    "Match",
    "Reply",
    "Request",
    "Rule",
    "request_of",
]
