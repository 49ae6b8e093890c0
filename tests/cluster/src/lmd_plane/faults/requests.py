"""What a client asks of an API server, read from the method and the path as the server itself reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get", "HEAD": "get"}


@dataclass(frozen=True)
class Request:
    """One request; `resource` is empty for paths outside the API, such as /version."""

    number: int
    method: str
    target: str
    user_agent: str
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def is_write(self) -> bool:
        """Whether the server may change something for it."""
        return self.verb in WRITES and "dryRun=" not in urlsplit(self.target).query


@dataclass
class Exchange:
    """A request and what became of it."""

    request: Request
    status: int | None = None
    """What the server answered; None while it has not, and when it was never asked."""
    fault: str = ""
    """The action of the rule that decided its fate, or `Unreachable`."""
    events: int = 0
    """Watch events that were passed on."""
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Match:
    """Which requests are meant; what is left out matches everything. The verb `write` stands for all that change something."""

    verb: str | None = None
    resource: str | None = None
    subresource: str | None = None
    namespace: str | None = None
    name: str | None = None
    user_agent: str = ""

    def of(self, request: Request) -> bool:
        """Whether the request is meant."""
        return (
            self.verb in (None, request.verb, "write" if request.is_write else None)
            and self.resource in (None, request.resource)
            and self.subresource in (None, request.subresource)
            and self.namespace in (None, request.namespace)
            and self.name in (None, request.name)
            and self.user_agent in request.user_agent
        )


def request_of(number: int, method: str, target: str, user_agent: str) -> Request:
    """Return the request behind a method and a path with its query."""
    address = urlsplit(target)
    group, version, rest = _split([step for step in address.path.split("/") if step])
    if not version:
        return Request(number, method, target, user_agent, verb=method.lower())
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource, name, *sub = [*rest, "", ""][: max(len(rest), 2)]
    verb = _VERBS.get(method, method.lower())
    if parse_qs(address.query).get("watch", ["0"])[-1] in ("1", "true", "True"):
        verb = "watch"
    elif not name:
        verb = {"get": "list", "delete": "deletecollection"}.get(verb, verb)
    return Request(number, method, target, user_agent, verb, group, version, resource, "/".join(sub), namespace, name)


def _split(steps: list[str]) -> tuple[str, str, list[str]]:
    """Return API group, version and the rest of a path; no version for what is not about a resource."""
    match steps:
        case ["api", version, _, *_]:
            return "", version, steps[2:]
        case ["apis", group, version, _, *_]:
            return group, version, steps[3:]
        case _:
            return "", "", steps
