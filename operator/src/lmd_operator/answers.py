"""What pods tell of themselves, beside what the API server tells of them: how far a fetch is, and what their ranks run."""

from __future__ import annotations

from dataclasses import replace

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.resources.desired import Desired
from lmd_operator.runtime.progress import ProgressReader
from lmd_operator.runtime.reports import ReportReader
from lmd_operator.status import Observed

Key = tuple[str, str]


class Answers:
    """Asks those pods that have something to tell, and nobody else."""

    def __init__(self, progress: ProgressReader, reports: ReportReader) -> None:
        self._progress = progress
        self._reports = reports

    async def with_observed(self, observed: Observed, key: Key, owner: LargeModelDeployment, built: Desired) -> Observed:
        """Return what was observed with what the object's pods tell."""
        if observed.is_bringing():
            observed = replace(observed, progress=await self._progress.read(observed.bringing()))
        if owner.spec.handler is not None:  # a handler of the user's own reports nothing
            return observed
        # once loaded, not only once ready: then the write that tells of Ready can tell of this too
        loaded = [pod for pod in observed.live() if pod.revision == built.revision and pod.is_running and pod.has_started and pod.address]
        return replace(observed, verdicts=self._reports.ask(key, built.plan, loaded))

    def forget(self, key: Key) -> None:
        """Forget an object that is gone."""
        self._reports.forget(key)

    async def close(self) -> None:
        """Close the connections."""
        await self._progress.close()
        await self._reports.close()
