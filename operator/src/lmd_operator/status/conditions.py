"""The six conditions of an object.

| type | True | False | Unknown |
|---|---|---|---|
| Accepted | Valid | InvalidSpec, IllegalDegree, DoesNotFit, UnsupportedStrategy, NotAvailable | - |
| Planned | Settled | NotAccepted | - |
| ParallelismVerified | AsPlanned | DegreeMismatch, NotSharded, RankMissing, SharedDevice | NotReported |
| Ready | ReplicasReady, Suspended, ScaledToZero | a cause, Creating, Progressing, RollingOut, ProgressDeadlineExceeded, NotAccepted | - |
| Reconciling | a cause, Creating, Progressing, RollingOut | Settled, Stalled | - |
| Stalled | a cause, ProgressDeadlineExceeded, the reason of Accepted | Moving, Settled | - |

Causes are those of `lmd_operator.status.causes`, among them the refusals of the API server (ForeignObject, Forbidden, ...).
At rest Reconciling and Stalled are both False; otherwise exactly one of them is True: kstatus looks at Reconciling first, so
a stalled object that also said Reconciling would never be Failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lmd_operator.api.status import Condition, ConditionType, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.observed import DeploymentState, Verdict
from lmd_operator.planning.plan import Plan
from lmd_operator.resources.deployment import PROGRESS_MARGIN_SECONDS
from lmd_operator.status.causes import PASSING, Cause, counted, most_telling
from lmd_operator.status.observation import Observed
from lmd_operator.status.refusals import clause, refusal
from lmd_operator.status.tasks import is_stuck, of_fill
from lmd_operator.status.verification import NOT_YET, of_ranks
from lmd_operator.status.weights import FETCHING

MESSAGE_LIMIT = 4000
"""Longest message, in characters; the API takes 32768, and nobody reads that."""
Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Said:
    """A condition before it is dated. `generation` is that of the spec it is said about."""

    type: ConditionType
    status: Truth
    reason: str
    message: str
    generation: int


def dated(said: Iterable[Said], previous: Sequence[Condition], now: str) -> list[Condition]:
    """Return the conditions sorted by type; the time of one moves only when its status does."""
    before = {condition.type: condition for condition in previous}
    conditions = []
    for entry in sorted(said, key=lambda entry: entry.type):
        old = before.get(entry.type)
        conditions.append(
            Condition(
                type=entry.type,
                status=entry.status,
                reason=entry.reason,
                message=entry.message if len(entry.message) <= MESSAGE_LIMIT else f"{entry.message[: MESSAGE_LIMIT - 1]}…",
                observed_generation=entry.generation,
                last_transition_time=old.last_transition_time if old is not None and old.status == entry.status else now,
            )
        )
    return conditions


def of_accepted(owner: LargeModelDeployment, plan: Plan, revision: str, observed: Observed, previous: Status) -> list[Said]:
    """Return what is said about an accepted spec."""
    generation = owner.metadata.generation
    asked = 0 if owner.spec.suspend else owner.spec.replicas
    is_settled = observed.is_settled(asked, revision)
    why = _why(observed, asked, revision)
    reconciling, stalled = _progress(owner, plan, observed, why, revision, is_settled=is_settled)
    return [
        Said("Accepted", "True", "Valid", "The spec is valid.", generation),
        planned(plan, generation),
        _verified(of_ranks(owner, revision, observed, previous), generation),
        _ready(owner, observed, why, is_settled=is_settled),
        reconciling,
        stalled,
    ]


def planned(plan: Plan, generation: int) -> Said:
    """Say what was settled. Memory is not part of it unless the model's shape is known; then the reason has the sum."""
    devices = {0: "CPU", 1: "1 GPU"}.get(plan.gpus_per_replica, f"{plan.gpus_per_replica} GPUs")
    ranks = "1 rank" if plan.ranks == 1 else f"{plan.ranks} ranks"
    memory = " Whether it fits in memory is not known yet." if plan.memory is None else ""
    message = f"{ranks} on {devices} a replica. {plan.reason[:1].upper()}{plan.reason[1:]}.{memory}"
    return Said("Planned", "True", "Settled", message, generation)


def unverified(generation: int) -> Said:
    """Say that no replica of this spec could be asked yet."""
    return _verified(NOT_YET, generation)


def _verified(verdict: Verdict, generation: int) -> Said:
    return Said("ParallelismVerified", verdict.status, verdict.reason, verdict.message, generation)


def _ready(owner: LargeModelDeployment, observed: Observed, why: Cause, *, is_settled: bool) -> Said:
    """Say whether as many replicas answer as are asked for, whichever revision they run.

    While a change rolls out and all old replicas still answer, this stays True: nothing is wrong for clients. That the
    change is not in effect yet is said by Reconciling, which is all that kstatus needs.
    """
    spec, generation = owner.spec, owner.metadata.generation
    # kstatus takes Ready=False for a roll-out that never ends, so what was asked to be empty is Ready while it is
    if spec.suspend:
        wanted = f"set it to false to run {counted(spec.replicas)} again"
        return Said("Ready", "True", "Suspended", f"No replica is meant to run because spec.suspend is true; {wanted}.", generation)
    if spec.replicas == 0:
        message = "No replica is meant to run because spec.replicas is 0; raise it to serve requests."
        return Said("Ready", "True", "ScaledToZero", message, generation)
    count = len(observed.ready())
    if count < spec.replicas:
        message = f"{count} of {counted(spec.replicas)} answer. {why.message}"
        return Said("Ready", "False", why.reason, message, generation)
    rest = "" if is_settled else " The newest spec is not fully in effect yet; Reconciling and Stalled say why."
    subject = "The only replica answers." if spec.replicas == 1 else f"All {counted(spec.replicas)} answer."
    return Said("Ready", "True", "ReplicasReady", subject + rest, generation)


def _progress(
    owner: LargeModelDeployment, plan: Plan, observed: Observed, why: Cause, revision: str, *, is_settled: bool
) -> tuple[Said, Said]:
    """Return Reconciling and Stalled, of which at most one is True."""
    generation = owner.metadata.generation
    if is_settled:
        return (
            Said("Reconciling", "False", "Settled", "Everything is as the spec asks.", generation),
            Said("Stalled", "False", "Settled", "Nothing is stuck.", generation),
        )
    return underway(why, _stuck(owner, plan, observed, why, revision), generation)


def underway(why: Cause, stuck: Cause | None, generation: int) -> tuple[Said, Said]:
    """Return Reconciling and Stalled of what is not settled: it is awaited, or stuck."""
    if stuck is not None:
        return (
            Said("Reconciling", "False", "Stalled", "It does not go on until what Stalled says is put right.", generation),
            Said("Stalled", "True", stuck.reason, stuck.message, generation),
        )
    return (
        Said("Reconciling", "True", why.reason, why.message, generation),
        Said("Stalled", "False", "Moving", "It goes on by itself, or is tried again; Reconciling says what is awaited.", generation),
    )


def _stuck(owner: LargeModelDeployment, plan: Plan, observed: Observed, why: Cause, revision: str) -> Cause | None:
    """Return what only a human or another spec can move, or None."""
    refused = of_refused(observed)
    if refused is not None:
        return refused
    if owner.spec.suspend or owner.spec.replicas == 0:
        return None
    if observed.fill is not None and _filling(observed, revision) == why and is_stuck(observed.fill, observed.progress):
        return Cause(why.reason, f"It is tried again, but has failed several times. {why.message}")
    if not observed.is_past_deadline() or why.reason == FETCHING:
        return None  # Kubernetes' deadline knows nothing of weights that still arrive
    seconds = plan.startup.seconds + PROGRESS_MARGIN_SECONDS
    return Cause(why.reason, f"No progress for more than {seconds} seconds. {why.message}")


def _why(observed: Observed, asked: int, revision: str) -> Cause:
    """Return what is awaited: a cause in the pods, or else the step of the roll-out."""
    deployment = observed.deployment
    awaited = Cause("Progressing", f"It is tried again in a moment: {clause(observed.awaited)}.") if observed.awaited else None
    if asked == 0:
        ending = len(observed.ending()) + len(observed.ready())
        message = f"Still to end and to free its devices: {counted(ending)}." if ending else "The Deployment is being scaled to zero."
        return awaited if awaited and not ending else Cause("Terminating", message)
    refused = of_refused(observed)
    filling = _filling(observed, revision)
    if deployment is None:
        return refused or filling or awaited or Cause("Creating", "The Deployment is being created.")
    cause = most_telling(observed, asked) or refused
    if filling is not None and (cause is None or cause.reason in PASSING):
        return filling
    if cause := cause or awaited:
        return cause
    if deployment.observed_generation < deployment.generation:
        return Cause("Progressing", "Kubernetes has not taken in the newest Deployment yet.")
    return _step(deployment, observed, asked, revision)


def _filling(observed: Observed, revision: str) -> Cause | None:
    """Return why no replica of the revision may start yet, or None when nothing of a cache is awaited."""
    if observed.fill is None or any(pod.revision == revision for pod in observed.live()):
        return None
    return of_fill(observed.fill, observed.progress)


def _step(deployment: DeploymentState, observed: Observed, asked: int, revision: str) -> Cause:
    """Return how far a roll-out is whose pods show nothing wrong."""
    ready = observed.ready()
    new = min(deployment.updated, sum(pod.revision == revision for pod in ready))
    extra = deployment.replicas - asked
    if new < asked and (deployment.updated < asked or new < min(asked, len(ready))):
        reason, message = "RollingOut", f"{new} of {counted(asked)} run the newest pod template."
    elif extra > 0:
        reason, message = "RollingOut", f"All run the newest pod template; still to end: {counted(extra)}."
    else:
        reason, message = "Progressing", f"Kubernetes reports {deployment.ready} of {counted(asked)} ready."
    return Cause("ProgressDeadlineExceeded" if observed.is_past_deadline() else reason, message)


def of_refused(observed: Observed) -> Cause | None:
    """Return what the API server refused to store, or None."""
    if not observed.failures:
        return None
    reason, first = refusal(observed.failures[0])
    others = len(observed.failures) - 1
    more = f" {others} more of its objects could not be applied." if others else ""
    return Cause(reason, f"{first[:1].upper()}{first[1:]}.{more}")
