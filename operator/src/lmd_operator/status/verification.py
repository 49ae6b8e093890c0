"""Whether the ranks of replicas run what is planned. Pure; what a replica answers is read as anybody's word.

Two things tell. A worker whose ranks differ from what was rendered for it ends before it is ready, with the reason in its last
words. One that is ready reports what its ranks run, and here that is compared with the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmd_operator.api.status import Condition, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.observed import Verdict
from lmd_operator.planning.plan import Plan
from lmd_operator.rendering.layout import POD
from lmd_operator.status.causes import fault_of
from lmd_operator.status.observation import Observed

MOST_RANKS = 4096
_MOST_CHARACTERS = 80
_NOT_REPORTED = "NotReported"
_SAME_VERSION = "use the worker image of the operator's version"
_REMEDIES = {
    "DegreeMismatch": f"correct what changes the files or the environment of the pods, or {_SAME_VERSION}",
    "NotSharded": "use another strategy, or strategy None",
    "RankMissing": f"restart it with spec.restart, or {_SAME_VERSION}",
    "SharedDevice": "have the device plugin give every rank a device of its own, without sharing",
}

NOT_YET = Verdict("Unknown", _NOT_REPORTED, "Not known yet: the ranks of a replica are asked once it is ready.")
UNREACHED = Verdict(
    "Unknown",
    _NOT_REPORTED,
    f"Not known: no ready replica has told what its ranks run. The operator asks at port {POD.operations_port} of the pod; "
    "if this stays, let it reach that port.",
)
_OWN_HANDLER = Verdict("Unknown", _NOT_REPORTED, "Not known: a handler of your own does not report what its ranks run.")


@dataclass(frozen=True, slots=True)
class _Rank:
    """What one rank reports of itself."""

    world_size: int
    strategy: str
    degree: int
    stages: int
    device: str
    held: int
    whole: int
    allowed: int
    load_seconds: int


def of_ranks(owner: LargeModelDeployment, revision: str, observed: Observed, previous: Status) -> Verdict:
    """Return what is said of the ranks of a revision.

    One replica that runs something else makes it False, whatever the others do; one ready replica that runs what is planned makes it
    True. What an earlier look at the same revision has found stays until a replica tells something else: so it survives a restart of
    the operator, a replica that is replaced and a network that fails. That ranks differ stays only while there is somebody to ask.
    """
    pods = [pod for pod in observed.live() if pod.revision == revision]
    for pod in pods:
        if (fault := fault_of(pod)) is not None:
            return Verdict("False", fault.reason, f"A replica ended before it was ready. {fault.message}.")
    told = [observed.verdicts[pod.name] for pod in pods if pod.name in observed.verdicts]
    wrong = next((verdict for verdict in told if verdict is not None and verdict.status == "False"), None)
    if wrong is not None:
        return wrong
    ready = [pod for pod in pods if pod.is_ready]
    by_ready = [verdict for pod in ready if (verdict := observed.verdicts.get(pod.name)) is not None]
    right = next((verdict for verdict in by_ready if verdict.status == "True"), None)
    before = _before(revision, previous)
    if right is None and before is not None and (before.status == "True" or (before.status == "False" and None in told)):
        return Verdict(before.status, before.reason, before.message)
    if owner.spec.handler is not None:
        return _OWN_HANDLER
    return right or next(iter(by_ready), UNREACHED if ready else NOT_YET)


def compared(plan: Plan, document: object) -> Verdict:
    """Return what a report says of the plan; `document` is what a replica answered, whatever that is."""
    ranks = _ranks(document)
    if ranks is None:
        return unusable("what answers there is no report of ranks")
    for number, rank in sorted(ranks.items()):
        runs, planned = (rank.strategy, rank.degree, rank.stages, rank.world_size), (plan.strategy, plan.degree, plan.pipeline, plan.ranks)
        if runs != planned:
            return _wrong("DegreeMismatch", f"rank {number} runs {_words(*runs)}, but {_words(*planned)} is planned")
    missing = [str(number) for number in range(plan.ranks) if number not in ranks]
    if missing:
        return _wrong("RankMissing", f"rank {missing[0]} does not report; {len(ranks)} of {plan.ranks} planned ranks do")
    if plan.gpus_per_replica and (shared := _shared(ranks)):
        return _wrong("SharedDevice", shared)
    for number, rank in sorted(ranks.items()):
        if plan.ranks > 1 and rank.held > (rank.allowed or rank.whole):
            limit = f", more than its share of {_size(rank.allowed)}" if rank.allowed else ""
            return _wrong("NotSharded", f"rank {number} holds {_size(rank.held)} of parameters of a model of {_size(rank.whole)}{limit}")
    return Verdict("True", "AsPlanned", _right(plan, list(ranks.values())), max(rank.load_seconds for rank in ranks.values()))


def unusable(what: str) -> Verdict:
    """Return that a replica answered something that says nothing of its ranks."""
    return Verdict("Unknown", _NOT_REPORTED, f"Not known: a replica was asked what its ranks run, but {what}; {_SAME_VERSION}.")


def _before(revision: str, previous: Status) -> Condition | None:
    """Return what was said of this revision before."""
    if previous.revision.updated != revision:
        return None
    return next((condition for condition in previous.conditions if condition.type == "ParallelismVerified"), None)


def _ranks(document: object) -> dict[int, _Rank] | None:
    """Return the reported ranks by number; None for anything that is no report."""
    entries = document.get("ranks") if isinstance(document, Mapping) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_RANKS:
        return None
    found: dict[int, _Rank] = {}
    for entry in entries:
        if not isinstance(entry, Mapping):
            return None
        counts = [entry.get(name) for name in ("rank", "world_size", "degree", "parameter_bytes", "model_bytes")]
        texts = [entry.get(name) for name in ("strategy", "device_id")]
        counts += [entry.get("pipeline", 1), entry.get("allowed_bytes", 0), entry.get("load_seconds", 0)]
        numbers = [count for count in counts if type(count) is int and 0 <= count < 2**60]
        words = [_plain(text) for text in texts if isinstance(text, str)]
        if len(numbers) != len(counts) or len(words) != len(texts):
            return None
        number, world_size, degree, held, whole, stages, allowed, load_seconds = numbers
        found[number] = _Rank(world_size, words[0], degree, stages, words[1], held, whole, allowed, load_seconds)
    return found


def _plain(text: str) -> str:
    """Return a text that can stand in a sentence and in any encoding, whatever it was."""
    return "".join(character if character.isprintable() else "?" for character in text[:_MOST_CHARACTERS])


def _shared(ranks: Mapping[int, _Rank]) -> str:
    """Return which ranks share a device, in words; nothing when each has its own."""
    owners: dict[str, int] = {}
    for number, rank in sorted(ranks.items()):
        owner = owners.setdefault(rank.device, number)
        if owner != number:
            return f"ranks {owner} and {number} both run on {rank.device}"
    return ""


def _right(plan: Plan, ranks: Sequence[_Rank]) -> str:
    whole = _size(ranks[0].whole)
    if plan.ranks == 1:
        return f"Its only rank runs what is planned: {plan.strategy}, with {_size(ranks[0].held)} of parameters of {whole} in its process."
    least, most = (_size(pick(rank.held for rank in ranks)) for pick in (min, max))
    each = f"{most} of parameters each" if least == most else f"{least} to {most} of parameters each"
    devices = ", each on a GPU of its own" if plan.gpus_per_replica else ""
    runs = f"{plan.strategy} at degree {plan.degree}{_stages(plan.pipeline)}"
    return f"All {plan.ranks} ranks run what is planned: {runs}, {each} of {whole}{devices}."


def _wrong(reason: str, what: str) -> Verdict:
    return Verdict("False", reason, f"A replica runs something else than planned: {what}. To put it right, {_REMEDIES[reason]}.")


def _words(strategy: str, degree: int, stages: int, ranks: int) -> str:
    return f"{strategy} at degree {degree}{_stages(stages)} on {'1 rank' if ranks == 1 else f'{ranks} ranks'}"


def _stages(count: int) -> str:
    return f" in {count} stages" if count > 1 else ""


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
