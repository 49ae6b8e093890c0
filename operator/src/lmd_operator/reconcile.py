"""One object, brought to what it asks for: observe, desire, apply, report.

Level-triggered: what happened does not matter, only what is. The same page serves a new object, a changed spec, a drifted
child and a restart. It never sleeps; what must be looked at again later is returned as a delay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lmd_operator import inspection, rollout
from lmd_operator.answers import Answers
from lmd_operator.api.parse import parse
from lmd_operator.api.status import ModelFacts, Revision, Status
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.cluster.api import Api
from lmd_operator.cluster.cache import Cache
from lmd_operator.cluster.door import Child, Door, ForeignObjectError
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.kinds import CHILDREN, CONFIG_MAP, DEPLOYMENT, JOB, LARGE_MODEL_DEPLOYMENT, POD, Kind
from lmd_operator.cluster.parents import Parent, Parents
from lmd_operator.cluster.records import Record
from lmd_operator.errors import InvalidSpecError
from lmd_operator.memory import Lately, Made, Memory, Result
from lmd_operator.names import LABEL_REVISION, STATUS_MANAGER
from lmd_operator.observed import DeploymentState, JobState, PodState, TaskState
from lmd_operator.removals import Removals
from lmd_operator.rendering.files import RenderedFiles
from lmd_operator.resources.desired import Desired, desired, document
from lmd_operator.resources.inspection import inspecting
from lmd_operator.settings import Settings
from lmd_operator.status import Observed, flips, refused, summarize, undecided
from lmd_operator.transitions import Told, transitions

log = logging.getLogger(__name__)

Key = tuple[str, str]
FLIP_STATUS_SECONDS = 1.0
"""Least time between two status writes: pods, ReplicaSets and Deployments settle one after the other, and one write can tell it all."""
PROGRESS_STATUS_SECONDS = 10.0
"""Least time before a status write that flips no condition, only tells of progress."""


class Reconciler:
    """Brings objects to what they ask for. Holds the door, the caches and a memory; decides nothing itself."""

    def __init__(
        self,
        api: Api,
        parents: Parents,
        caches: Mapping[Kind, Cache],
        door: Door,
        settings: Settings,
        clock: Callable[[], float],
        now: Callable[[], str],
        answers: Answers,
    ) -> None:
        self._api = api
        self._parents = parents
        self._caches = caches
        self._door = door
        self._settings = settings
        self._clock = clock
        self._now = now
        self._answers = answers
        self._removals = Removals(api, caches, door)
        self._memory: dict[Key, Memory] = {}
        self.lately = Lately(clock)

    async def reconcile(self, key: Key) -> Result:
        """Bring one object to what it asks for and say how far it got. Raises `ApiError` to be tried again."""
        parent = self._parents.get(key)
        if parent is None or parent.is_going:
            self._forget(key)
            if parent is None:
                await self._removals.begin(key)
            return Result()
        memory = self._memory.setdefault(key, Memory())
        try:
            owner = self._parse(parent, memory)
            if memory.made is None and inspection.is_needed(owner) and inspection.outline(self._known(owner, parent, memory)) is None:
                return await self._inspect(parent, owner, memory)
            made = self._make(parent, owner, memory)
        except InvalidSpecError as error:
            pods = self._observe(parent, []).pods
            return await self._report(parent, memory, refused(parent.generation, error.problems, parent.status, self._now(), pods=pods))
        built = made.built
        children = self._startable(parent, made.children, built, owner)
        if memory.is_applied and self._lacks_children(children) and not await self._exists(parent):
            return Result()
        told = rollout.turning(self._deployment(parent), self._pods(parent), is_one_by_one=made.is_tight)
        await self._removals.clear(key)
        failures, retry = await self._apply(children, parent.uid)
        self._note_applied(parent, memory)
        await self._prune(key, parent.uid, owner, made.children)
        await self._removals.prune(key, made.children)
        observed = await self._answers.with_observed(self._observe(parent, failures, built.fill, retry), key, owner, built)
        previous = parent.status if memory.model is None else parent.status.model_copy(update={"model": memory.model})
        result = await self._report(parent, memory, summarize(owner, built, observed, previous, self._now()))
        if result.news:
            told = [*rollout.beginning(owner, previous, built.revision), *told]
        if observed.is_bringing():
            result = replace(result, again_seconds=result.again_seconds or PROGRESS_STATUS_SECONDS)
        return replace(result, retry=retry, news=[*result.news, *told])

    def _parse(self, parent: Parent, memory: Memory) -> LargeModelDeployment:
        """Return the typed object of this generation."""
        is_new = (memory.generation, memory.uid) != (parent.generation, parent.uid)
        if is_new or memory.owner is None:
            memory.owner, memory.made = parse(parent.document(), strict=False), None
        if is_new:
            memory.generation, memory.uid = parent.generation, parent.uid
            memory.model, memory.look = None, ()
        return memory.owner

    def _make(self, parent: Parent, owner: LargeModelDeployment, memory: Memory) -> Made:
        """Return what the object wants; it is made once per generation while the object is worked on, and again when room runs out."""
        made = memory.made or self._made(parent, owner, memory, is_tight=False)
        is_tight = rollout.replaces_one_by_one(owner, self._deployment(parent), self._pods(parent))
        memory.made = made if made.is_tight == is_tight else self._made(parent, owner, memory, is_tight=is_tight)
        self.lately.add((parent.namespace, parent.name), memory)
        return memory.made

    def _made(self, parent: Parent, owner: LargeModelDeployment, memory: Memory, *, is_tight: bool) -> Made:
        shape = inspection.shape(self._known(owner, parent, memory)) if inspection.is_needed(owner) else None
        built = desired(owner, self._settings, shape=shape, is_tight=is_tight)
        children = tuple(Child.of(document(resource)) for resource in built.resources)
        return Made(replace(built, files=RenderedFiles({}), resources=()), children, is_tight)

    def _known(self, owner: LargeModelDeployment, parent: Parent, memory: Memory) -> ModelFacts | None:
        """Return what is known of the model: from the status, or, before it is there, from the Job that looked."""
        if memory.model is None:
            memory.model = inspection.known(owner, parent.status)
        if inspection.outline(memory.model) is None and memory.look:
            task = self._task(parent, memory.look[-1].name, self._pods(parent))
            memory.model = (inspection.told(owner, task.pods) if task.is_complete else None) or memory.model
        return memory.model

    async def _inspect(self, parent: Parent, owner: LargeModelDeployment, memory: Memory) -> Result:
        """Have a Job say what the model is, as nothing can be planned before; what an earlier spec made stays as it is."""
        if not memory.look:
            memory.look = tuple(Child.of(document(resource)) for resource in inspecting(owner, self._settings))
            if inspection.outline(self._known(owner, parent, memory)) is not None:  # before a restart
                return await self.reconcile((parent.namespace, parent.name))
        if self._lacks_children(memory.look) and memory.is_applied and not await self._exists(parent):
            return Result()
        failures, retry = await self._apply(memory.look, parent.uid)
        self._note_applied(parent, memory)
        task = self._task(parent, memory.look[-1].name, self._pods(parent))
        status = undecided(owner, task, self._observe(parent, failures), parent.status, self._now())
        return replace(await self._report(parent, memory, status), retry=retry)

    def _startable(self, parent: Parent, children: tuple[Child, ...], built: Desired, owner: LargeModelDeployment) -> tuple[Child, ...]:
        """Return the children that may be there now: no replica starts or changes before the cache is filled.

        So no devices are held while weights arrive, and replicas of an older revision answer until the newer one can start.
        """
        fill = self._caches[JOB].get(parent.namespace, built.fill) if built.fill else None
        is_awaited = built.fill and not (fill is not None and isinstance(fill.state, JobState) and fill.state.is_complete)
        if not is_awaited or owner.spec.suspend or owner.spec.replicas == 0:
            return children
        return tuple(child for child in children if child.kind is not DEPLOYMENT)

    def _lacks_children(self, children: tuple[Child, ...]) -> bool:
        return any(self._caches[child.kind].get(child.namespace, child.name) is None for child in children)

    async def _exists(self, parent: Parent) -> bool:
        """Ask whether the object is still there: children that vanish may have followed it, and its deletion may have been missed.

        Making them anew would fight the garbage collector for ever.
        """
        live = await self._api.get(LARGE_MODEL_DEPLOYMENT, parent.namespace, parent.name)
        if live is not None and live["metadata"]["uid"] == parent.uid:
            self._parents.put(live)
            return not live["metadata"].get("deletionTimestamp")
        self._parents.remove(parent.namespace, parent.name, parent.uid)
        self._forget((parent.namespace, parent.name))
        if live is not None:
            self._parents.put(live)
        return False

    def _note_applied(self, parent: Parent, memory: Memory) -> None:
        if not memory.is_applied and not parent.status.conditions:
            memory.status_at = self._clock()  # one write tells more a second later, and children of a thousand new objects go first
        memory.is_applied = True

    async def _apply(self, children: tuple[Child, ...], uid: str) -> tuple[list[str], ApiError | None]:
        """Apply every child, whatever happens to the others; return what failed in words, and what is worth another try."""
        failures: list[str] = []
        retry: ApiError | None = None
        for child in children:
            try:
                await self._door.apply(child, uid)
            except ForeignObjectError as error:
                failures.append(error.detail)
            except ApiError as error:
                if error.status not in (403, 409, 422):
                    raise
                retry = error
                if error.status != 409:  # a conflict or a child that is ending passes by itself
                    failures.append(str(error))
        return failures, retry

    async def _prune(self, key: Key, uid: str, owner: LargeModelDeployment, children: tuple[Child, ...]) -> None:
        """Delete what is ours and no longer wanted; of ConfigMaps, keep those that pods or a rollback may need."""
        wanted = {(child.kind.name, child.name) for child in children}
        keep = self._kept_config_maps(key, owner)
        for kind in CHILDREN:
            for record in self._caches[kind].of(*key):
                if record.owner_uid != uid or record.is_going or (kind.name, record.name) in wanted:
                    continue
                if kind is CONFIG_MAP and record.name in keep:
                    continue
                if kind is DEPLOYMENT or record.goes_by_itself:
                    continue
                await self._door.delete(record)

    def _kept_config_maps(self, key: Key, owner: LargeModelDeployment) -> set[str]:
        records = self._revisions(key)
        newest = records[: owner.spec.rollout.revision_history_limit + 1]
        if len(newest) == len(records):
            return {record.name for record in records}
        states = (pod.state for pod in self._caches[POD].of(*key))
        used = {state.revision for state in states if isinstance(state, PodState) and not state.is_ended}
        if (deployment := self._caches[DEPLOYMENT].get(*key)) is not None:  # one that could not be changed still makes old pods
            used.add(deployment.owned_fields()["spec"]["template"]["metadata"].get("labels", {}).get(LABEL_REVISION, ""))
        return {record.name for record in [*newest, *(record for record in records if record.revision in used)]}

    def _revisions(self, key: Key) -> list[Record]:
        """Return the object's ConfigMaps, newest first."""
        return sorted(self._caches[CONFIG_MAP].of(*key), key=lambda record: (record.created, record.version), reverse=True)

    def _observe(self, parent: Parent, failures: list[str], fill: str = "", retry: ApiError | None = None) -> Observed:
        pods = self._pods(parent)
        records = self._revisions((parent.namespace, parent.name))
        return Observed(
            deployment=self._deployment(parent),
            pods=tuple(pod for pod in pods if not pod.job),
            revisions=tuple(Revision(name=record.revision, config_map=record.name) for record in records),
            failures=tuple(failures),
            fill=self._task(parent, fill, pods) if fill else None,
            awaited=retry.detail if retry is not None and retry.status == 409 else "",
        )

    def _deployment(self, parent: Parent) -> DeploymentState | None:
        found = self._caches[DEPLOYMENT].get(parent.namespace, parent.name)
        state = found.state if found is not None and found.owner_uid == parent.uid else None
        return state if isinstance(state, DeploymentState) else None

    def _pods(self, parent: Parent) -> list[PodState]:
        records = self._caches[POD].of(parent.namespace, parent.name)
        return [record.state for record in records if isinstance(record.state, PodState)]

    def _task(self, parent: Parent, name: str, pods: list[PodState]) -> TaskState:
        found = self._caches[JOB].get(parent.namespace, name)
        state = found.state if found is not None and found.owner_uid == parent.uid else None
        return TaskState(name, state if isinstance(state, JobState) else None, tuple(pod for pod in pods if pod.job == name))

    async def _report(self, parent: Parent, memory: Memory, status: Status) -> Result:
        """Write the status if it differs; news of progress only, at most every few seconds."""
        previous = parent.status
        if status == previous:
            return Result(current=status)
        least = FLIP_STATUS_SECONDS if flips(previous, status) else PROGRESS_STATUS_SECONDS
        wait = memory.status_at + least - self._clock()
        if wait > 0:
            return Result(again_seconds=wait)
        try:
            written = await self._api.apply(
                LARGE_MODEL_DEPLOYMENT, _status_document(parent, status), manager=STATUS_MANAGER, subresource="status"
            )
        except ApiError as error:
            if error.status in (404, 409) and not await self._exists(parent):
                return Result()
            raise
        memory.status_at = self._clock()
        self._parents.put(written, is_own=True)
        return Result(current=status, news=self._news(parent, previous, status))

    def _news(self, parent: Parent, previous: Status, status: Status) -> list[Told]:
        """Return what to tell; the rendered files are only looked up where there are two of them to compare."""
        if previous.revision.updated in ("", status.revision.updated):
            return transitions(previous, status)
        return transitions(previous, status, self._texts(parent, previous), self._texts(parent, status))

    def _texts(self, parent: Parent, status: Status) -> dict[str, str] | None:
        """Return the rendered files of a status' revision, while their ConfigMap is kept."""
        for record in self._revisions((parent.namespace, parent.name)):
            if record.revision == status.revision.updated:
                texts: dict[str, str] = record.owned_fields().get("data", {})
                return texts
        return None

    def _forget(self, key: Key) -> None:
        self.lately.remove(key)
        self._answers.forget(key)
        if self._memory.pop(key, None) is not None:
            self._door.forget(*key)


def _status_document(parent: Parent, status: Status) -> dict[str, Any]:
    return {
        "apiVersion": LARGE_MODEL_DEPLOYMENT.api_version,
        "kind": LARGE_MODEL_DEPLOYMENT.name,
        "metadata": {"name": parent.name, "namespace": parent.namespace, "uid": parent.uid},
        "status": status.model_dump(by_alias=True, exclude_none=True, mode="json"),
    }
