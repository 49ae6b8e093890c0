"""What the operator counts about itself, in Prometheus' terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from lmd_operator.api.status import Status

Key = tuple[str, str]

NAMESPACE = "lmd_operator"
OUTCOMES = ("done", "gone", "retry", "defect", "cut")
"""How a reconcile ends: as it should, of an object that is gone, to be tried again, by a defect of ours, cut
short because leadership was lost."""
RECONCILE_BUCKETS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("api_requests_total", "Requests to the API server.", "verb", "resource", "code")
        self.reconciles = self._counter("reconciles_total", "Reconciles by outcome.", "outcome")
        for outcome in OUTCOMES:  # there from the start: a series that appears with its first defect has not increased
            self.reconciles.labels(outcome)
        self.seconds = Histogram(
            f"{NAMESPACE}_reconcile_seconds",
            "Duration of one reconcile, in seconds.",
            registry=self.registry,
            buckets=RECONCILE_BUCKETS_SECONDS,
        )
        self.depth = self._gauge("queue_depth", "Objects that wait for a reconcile.")
        self.age = self._gauge("queue_oldest_seconds", "How long the oldest waiting object has waited, in seconds.")
        self.lag = self._gauge("event_loop_lag_seconds", "How late the event loop last ran a timer, in seconds.")
        self.leader = self._gauge("leader", "1 while this process is the leader.")
        self.silence = self._gauge("watch_silence_seconds", "How long nothing was heard of a watch, in seconds.", "resource")
        self.objects = self._gauge("objects", "Objects known.")

    def tell_of(self, statuses: Callable[[], Iterable[tuple[Key, Status]]]) -> None:
        """Have the objects' own metrics read from their statuses whenever somebody asks for them."""
        self.registry.register(_Deployments(statuses))

    def count_request(self, verb: str, resource: str, code: int) -> None:
        """Count one finished request; code 0 when there was no answer."""
        self.requests.labels(verb, resource, str(code)).inc()

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"{NAMESPACE}_{name}", words, labels, registry=self.registry)

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(f"{NAMESPACE}_{name}", words, labels, registry=self.registry)


class _Deployments(Collector):
    """What each object's status says. Gauges that are kept would take twenty objects, 15 KiB, for each of ours."""

    def __init__(self, statuses: Callable[[], Iterable[tuple[Key, Status]]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield conditions and replicas of every object."""
        condition = GaugeMetricFamily(
            f"{NAMESPACE}_deployment_condition",
            "1 for the status each condition of each object has.",
            labels=("namespace", "name", "condition", "status"),
        )
        replicas = GaugeMetricFamily(
            f"{NAMESPACE}_deployment_replicas", "Replicas of each object, by what they are.", labels=("namespace", "name", "state")
        )
        for key, status in self._statuses():
            for each in status.conditions:
                for value in ("True", "False", "Unknown"):
                    condition.add_metric((*key, each.type, value), each.status == value)
            replicas.add_metric((*key, "ready"), status.ready_replicas)
            replicas.add_metric((*key, "existing"), status.replicas)
        yield condition
        yield replicas
