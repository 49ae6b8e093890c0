"""Everything the worker raises on purpose.

WorkerError
├── SettingsError      what is mounted does not make a worker; nothing was loaded
├── ModelRefusedError  the model cannot be served as asked; says what would work
├── SelfTestError      the loaded model does not compute what it should
├── RankError          the ranks do not form the group that was planned
├── FetchError         the weights do not arrive, or are not what they should be; carries a reason for machines
└── BadRequestError    one client's input; answered 4xx, never fails a neighbour

Every message is one sentence or two: what was wrong, where, what to do. `reason` is one CamelCase word that the operator shows;
most errors have none, as the sentence says it all.
"""

from typing import Literal

FetchReason = Literal[
    "SourceNotFound",
    "SourceForbidden",
    "TokenMissing",
    "RevisionNotFound",
    "SourceInvalid",
    "SourceChanged",
    "NoSpace",
    "DigestMismatch",
    "PickleRefused",
    "WeightsTruncated",
    "EndpointUnreachable",
    "CacheLocked",
    "CacheIncomplete",
    "FetchFailed",
]


ParallelismReason = Literal["DegreeMismatch", "NotSharded", "RankMissing", "SharedDevice"]
"""How ranks can differ from what was planned; the reasons of the object's condition ParallelismVerified."""


class WorkerError(Exception):
    """Anything the worker says in words instead of a traceback."""

    def __init__(self, message: str, *, reason: ParallelismReason | FetchReason | Literal[""] = "") -> None:
        super().__init__(message)
        self.reason = reason


class SettingsError(WorkerError):
    """The mounted files or the environment are wrong or disagree with each other."""


class ModelRefusedError(WorkerError):
    """The model cannot be served by this strategy at this degree; the message names what can."""


class SelfTestError(WorkerError):
    """A loaded model failed a check that must hold before it may say ready."""


class RankError(WorkerError):
    """A rank is missing, on the wrong device, or of another degree than planned."""


class BadRequestError(WorkerError):
    """One request is wrong; `status` is the HTTP code its client gets, with `retry_after_seconds` when trying again may help.

    `param` is the field it speaks of and `code` a word programs may look for, both as in OpenAI's error object.
    """

    def __init__(
        self, message: str, status: int = 400, *, retry_after_seconds: int | None = None, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.param = param
        self.code = code


class FetchError(WorkerError):
    """Weights cannot be had, or are not what they should be. It always has a reason, which the operator shows as the cause."""

    def __init__(self, reason: FetchReason, message: str) -> None:
        super().__init__(message, reason=reason)
