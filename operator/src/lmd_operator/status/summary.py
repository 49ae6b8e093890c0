"""The whole `status` of one object, of an accepted spec and of a refused one. Same input, equal output.

A status that would say nothing new equals the previous one, so that nothing is written at rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmd_operator.api.status import Condition, PlanStatus, Revisions, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import Problem
from lmd_operator.observed import PodState
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.weights import needs_fetch
from lmd_operator.resources.common import selector
from lmd_operator.resources.desired import Desired
from lmd_operator.status.causes import counted, of_pods
from lmd_operator.status.conditions import Said, dated, of_accepted, unverified
from lmd_operator.status.observation import Observed, current_revision
from lmd_operator.status.weights import model_facts, weights_status

HISTORY_LIMIT = 101
PROBLEMS_LIMIT = 20
"""Problems told in one message; more are counted."""

_REASONS = (
    ("spec.parallelism.strategy", "not available in this version", "UnsupportedStrategy"),
    ("spec.engine.deepspeed.replaceWithKernelInject", "cannot work", "NotAvailable"),
    ("spec.engine.deepspeed.enableCudaGraph", "cannot work", "NotAvailable"),
    ("", "not available in this version", "NotAvailable"),
    ("spec.parallelism.tensor", "", "IllegalDegree"),
    ("spec.parallelism.pipeline", "", "IllegalDegree"),
    ("spec.parallelism.expert", "", "IllegalDegree"),
    ("", "", "InvalidSpec"),
)
"""Path and words of a problem to the reason of Accepted; the first row that fits wins."""
_GRAVEST_FIRST = ("InvalidSpec", "IllegalDegree", "UnsupportedStrategy", "NotAvailable")


def summarize(owner: LargeModelDeployment, built: Desired, observed: Observed, previous: Status, now: str) -> Status:
    """Return the status of an accepted spec; `now` is RFC 3339 and used only where a condition flips."""
    revision = built.files.revision
    ready = observed.ready()
    replicas = len(observed.live()) if observed.deployment is None else max(observed.deployment.replicas, len(ready))
    return Status(
        observed_generation=owner.metadata.generation,
        replicas=replicas,
        ready_replicas=len(ready),
        selector=",".join(f"{key}={value}" for key, value in sorted(selector(owner).items())),
        url=f"http://{owner.metadata.name}.{owner.metadata.namespace}.svc:{owner.spec.endpoint.port}",
        revision=Revisions(
            current=current_revision(ready, revision, previous.revision.current),
            updated=revision,
            history=list(observed.revisions[:HISTORY_LIMIT]),
        ),
        model=model_facts(observed.bringing(), revision) or (previous.model if needs_fetch(owner) else None),
        weights=weights_status(observed.bringing(), revision, observed.progress, previous.weights),
        plan=_plan(built.plan),
        conditions=dated(of_accepted(owner, built.plan, revision, observed), previous.conditions, now),
    )


def refused(generation: int, problems: Sequence[Problem], previous: Status, now: str, *, pods: Sequence[PodState] | None = None) -> Status:
    """Return the status of a spec that can never work; the children of the last accepted one keep running, untouched.

    What was said about that one stays, with its generation: `kubectl wait` then knows that Ready is not about the new
    spec. `pods` keep the counts and Ready true; without them both stay as they were.
    """
    reason = reason_of(problems)
    told = [str(problem) for problem in problems[:PROBLEMS_LIMIT]]
    more = f"; and {len(problems) - PROBLEMS_LIMIT} more" if len(problems) > PROBLEMS_LIMIT else ""
    message = "; ".join(told) + more or "The spec cannot be served."
    before = {condition.type: condition for condition in previous.conditions} if previous.revision.updated else {}
    no_plan = Said("Planned", "False", "NotAccepted", "Nothing is planned for a spec that is refused.", generation)
    said = [
        Said("Accepted", "False", reason, message, generation),
        _kept(before["Planned"]) if "Planned" in before else no_plan,
        _kept(before["ParallelismVerified"]) if "ParallelismVerified" in before else unverified(generation),
        _still_ready(before.get("Ready"), generation, pods),
        Said("Reconciling", "False", "Stalled", "It does not go on until what Stalled says is put right.", generation),
        Said("Stalled", "True", reason, f"Nothing of this spec is applied until it is corrected: {message}", generation),
    ]
    counts = {} if pods is None else _counts(pods)
    return previous.model_copy(update={"observed_generation": generation, "conditions": dated(said, previous.conditions, now), **counts})


def reason_of(problems: Sequence[Problem]) -> str:
    """Return the reason of Accepted=False: that of the gravest problem."""
    reasons = {
        next(reason for path, words, reason in _REASONS if problem.path.startswith(path) and words in problem.message)
        for problem in problems
    }
    return min(reasons, key=_GRAVEST_FIRST.index, default="InvalidSpec")


def _still_ready(before: Condition | None, generation: int, pods: Sequence[PodState] | None) -> Said:
    """Return Ready of the last accepted spec, as its pods are now."""
    if before is None:
        return Said("Ready", "False", "NotAccepted", "No replica runs: the spec is refused, and none was accepted before.", generation)
    if pods is None or before.reason in ("Suspended", "ScaledToZero"):
        return _kept(before)
    counts = _counts(pods)
    ready, total = counts["ready_replicas"], counts["replicas"]
    if ready and ready == total:
        message = f"All {counted(total)} of the last accepted spec answer; the newest spec is refused."
        return Said("Ready", "True", "ReplicasReady", message, before.observed_generation)
    cause = of_pods(pods)
    reason = cause.reason if cause else "PodsPending"
    rest = f" {cause.message}" if cause else ""
    message = f"{ready} of {counted(total)} of the last accepted spec answer; the newest spec is refused.{rest}"
    return Said("Ready", "False", reason, message, before.observed_generation)


def _kept(condition: Condition) -> Said:
    return Said(condition.type, condition.status, condition.reason, condition.message, condition.observed_generation)


def _counts(pods: Sequence[PodState]) -> dict[str, int]:
    live = Observed(None, tuple(pods), (), ())
    return {"replicas": len(live.live()), "ready_replicas": len(live.ready())}


def _plan(plan: Plan) -> PlanStatus:
    return PlanStatus(strategy=plan.strategy, tensor=plan.tensor, pipeline=1, gpus_per_replica=plan.gpus_per_replica, reason=plan.reason)
