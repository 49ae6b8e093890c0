"""The whole `status` of one object, of an accepted spec and of a refused one. Same input, equal output.

A status that would say nothing new equals the previous one, so that nothing is written at rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmd_operator import inspection
from lmd_operator.api.status import Condition, MemoryPlan, ModelFacts, PlanStatus, Revisions, StartupStatus, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.errors import Problem
from lmd_operator.observed import PodState, TaskState
from lmd_operator.planning.memory import GIB, DeviceMemory
from lmd_operator.planning.plan import Plan
from lmd_operator.resources.common import selector
from lmd_operator.resources.desired import Desired
from lmd_operator.status.causes import counted, of_pods
from lmd_operator.status.conditions import Said, dated, of_accepted, of_refused, underway, unverified
from lmd_operator.status.observation import Observed, current_revision
from lmd_operator.status.tasks import is_stuck, of_inspection
from lmd_operator.status.weights import newest, weights_status

HISTORY_LIMIT = 101
PROBLEMS_LIMIT = 20
"""Problems told in one message; more are counted."""

_REASONS = (
    ("spec.parallelism.strategy", "not available in this version", "UnsupportedStrategy"),
    ("spec.engine.deepspeed.replaceWithKernelInject", "cannot work", "NotAvailable"),
    ("spec.engine.deepspeed.enableCudaGraph", "cannot work", "NotAvailable"),
    ("", "not available in this version", "NotAvailable"),
    ("spec.parallelism.tensor", "is Auto, but", "DoesNotFit"),
    ("spec.parallelism.tensor", "", "IllegalDegree"),
    ("spec.parallelism.pipeline", "", "IllegalDegree"),
    ("spec.parallelism.expert", "", "IllegalDegree"),
    ("", "", "InvalidSpec"),
)
"""Path and words of a problem to the reason of Accepted; the first row that fits wins."""
_GRAVEST_FIRST = ("InvalidSpec", "IllegalDegree", "DoesNotFit", "UnsupportedStrategy", "NotAvailable")


def summarize(owner: LargeModelDeployment, built: Desired, observed: Observed, previous: Status, now: str) -> Status:
    """Return the status of an accepted spec; `now` is RFC 3339 and used only where a condition flips."""
    revision = built.revision
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
        model=_model(owner, observed, revision, previous),
        weights=weights_status(observed.bringing(), revision, observed.progress, previous.weights),
        plan=_plan(built.plan),
        startup=_startup(built.plan, revision, observed, previous),
        conditions=dated(of_accepted(owner, built.plan, revision, observed, previous), previous.conditions, now),
    )


def undecided(owner: LargeModelDeployment, task: TaskState, observed: Observed, previous: Status, now: str) -> Status:
    """Return the status of a spec that cannot be planned before the model is known; what ran before runs on, untouched."""
    generation = owner.metadata.generation
    refusal = of_refused(observed)
    cause = refusal or of_inspection(task)
    before = {condition.type: condition for condition in previous.conditions} if previous.revision.updated else {}
    why = f"What the model is has to be read from its files first. {cause.message}"
    first = Said("Ready", "False", cause.reason, f"No replica runs yet. {cause.message}", generation)
    said = [
        Said("Accepted", "True", "Valid", "The spec is valid.", generation),
        Said("Planned", "False", "ModelUnknown", why, generation),
        _kept(before["ParallelismVerified"]) if "ParallelismVerified" in before else unverified(generation),
        _still_ready(before["Ready"], observed.pods, "is not planned yet") if "Ready" in before else first,
        *underway(cause, cause if refusal is not None or is_stuck(task, {}) else None, generation),
    ]
    counts = _counts(observed.pods)
    return previous.model_copy(update={"observed_generation": generation, "conditions": dated(said, previous.conditions, now), **counts})


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
    nothing_runs = Said("Ready", "False", "NotAccepted", "No replica runs: the spec is refused, and none was accepted before.", generation)
    no_plan = Said("Planned", "False", "NotAccepted", "Nothing is planned for a spec that is refused.", generation)
    said = [
        Said("Accepted", "False", reason, message, generation),
        _kept(before["Planned"]) if "Planned" in before else no_plan,
        _kept(before["ParallelismVerified"]) if "ParallelismVerified" in before else unverified(generation),
        _still_ready(before["Ready"], pods, "is refused") if "Ready" in before else nothing_runs,
        Said("Reconciling", "False", "Stalled", "It does not go on until what Stalled says is put right.", generation),
        Said("Stalled", "True", reason, f"Nothing of this spec is applied until it is corrected: {message}", generation),
    ]
    counts = {} if pods is None else _counts(pods)
    return previous.model_copy(update={"observed_generation": generation, "conditions": dated(said, previous.conditions, now), **counts})


def flips(previous: Status, current: Status) -> bool:
    """Return whether any condition says something else than before, or another generation is answered."""
    before = {condition.type: condition.status for condition in previous.conditions}
    after = {condition.type: condition.status for condition in current.conditions}
    return before != after or previous.observed_generation != current.observed_generation


def reason_of(problems: Sequence[Problem]) -> str:
    """Return the reason of Accepted=False: that of the gravest problem."""
    reasons = {
        next(reason for path, words, reason in _REASONS if problem.path.startswith(path) and words in problem.message)
        for problem in problems
    }
    return min(reasons, key=_GRAVEST_FIRST.index, default="InvalidSpec")


def _still_ready(before: Condition, pods: Sequence[PodState] | None, newest: str) -> Said:
    """Return Ready of the last accepted spec, as its pods are now; `newest` says how the newest spec is."""
    if pods is None or before.reason in ("Suspended", "ScaledToZero"):
        return _kept(before)
    counts = _counts(pods)
    ready, total = counts["ready_replicas"], counts["replicas"]
    if ready and ready == total:
        message = f"All {counted(total)} of the last accepted spec answer; the newest spec {newest}."
        return Said("Ready", "True", "ReplicasReady", message, before.observed_generation)
    cause = of_pods(pods)
    reason = cause.reason if cause else "PodsPending"
    rest = f" {cause.message}" if cause else ""
    message = f"{ready} of {counted(total)} of the last accepted spec answer; the newest spec {newest}.{rest}"
    return Said("Ready", "False", reason, message, before.observed_generation)


def _model(owner: LargeModelDeployment, observed: Observed, revision: str, previous: Status) -> ModelFacts | None:
    """Return what is known of the model; a fetch says no more than an inspection has said, and leaves the outline out."""
    kept = inspection.known(owner, previous)
    found = inspection.told(owner, newest(observed.bringing(), revision))
    if found is None or kept is None:
        return found or kept
    return found.model_copy(update={"outline": found.outline or kept.outline, "revision": found.revision or kept.revision})


def _kept(condition: Condition) -> Said:
    return Said(condition.type, condition.status, condition.reason, condition.message, condition.observed_generation)


def _counts(pods: Sequence[PodState]) -> dict[str, int]:
    live = Observed(None, tuple(pods), (), ())
    return {"replicas": len(live.live()), "ready_replicas": len(live.ready())}


def _plan(plan: Plan) -> PlanStatus:
    return PlanStatus(
        strategy=plan.strategy,
        tensor=plan.tensor,
        pipeline=plan.pipeline,
        data=plan.data,
        gpus_per_replica=plan.gpus_per_replica,
        reason=plan.reason,
        memory=None if plan.memory is None else _memory(plan.memory, plan.limit),
    )


def _startup(plan: Plan, revision: str, observed: Observed, previous: Status) -> StartupStatus:
    """Return the limit, and what the slowest rank of this revision that has ever told took."""
    told = [verdict.load_seconds for verdict in observed.verdicts.values() if verdict is not None]
    if previous.startup is not None and previous.revision.updated == revision:
        told.append(previous.startup.measured_seconds or 0)
    return StartupStatus(limit_seconds=plan.startup.seconds, sum=plan.startup.sum, measured_seconds=max(told, default=0) or None)


def _memory(needed: DeviceMemory, limit: int | None) -> MemoryPlan:
    def rounded(count: int) -> float:
        return round(count / GIB, 2)

    return MemoryPlan(
        weights_gi_b=rounded(needed.weights),
        key_value_gi_b=rounded(needed.key_values),
        overhead_gi_b=rounded(needed.activations + needed.runtime),
        limit_gi_b=rounded(limit or 0),
        fits=limit is None or needed.needed <= limit,
    )
