"""The Hugging Face hub and mirrors that speak its protocol: one listing with digests, then ranges of files.

Two requests of the protocol are used, as huggingface_hub 2.4 makes them: `/api/models/<repository>/revision/<revision>?blobs=true`
and `/<repository>/resolve/<commit>/<file>`. The library itself downloads one stream a file and compares sizes, not digests.
Large files are redirected to another host; `requests` then leaves the token out. Proxies and certificates come by environment
(HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import urllib3

from lmd_worker.errors import FetchError
from lmd_worker.weights.listing import Digest, Listing, RemoteFile
from lmd_worker.weights.remote import InterruptedReadError
from lmd_worker.weights.source import HubSource

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Longest wait for the next bytes of an answer."""
CHUNK_BYTES = 2**20
"""At most, of what has come: nothing is waited for, so nothing is lost when a connection is cut, and few calls are made when it is fast."""
LARGEST_ANSWER_BYTES = 64 * 2**20
"""Of the listing; the largest repositories have some thousand files, a few hundred bytes each."""
LOCATION_SECONDS = 300.0
"""How long a redirect is remembered: signed addresses live for an hour."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class Hub:
    """One repository at one revision."""

    def __init__(self, source: HubSource, token: str | None) -> None:
        self._source = source
        self._token = token
        self._endpoint = source.endpoint.rstrip("/")
        self._sessions = threading.local()
        self._commit = source.revision
        self._locations: dict[str, tuple[str, float]] = {}

    def listing(self) -> Listing:
        """Return the files of the revision, with the commit that it stands for now."""
        url = f"{self._endpoint}/api/models/{self._source.repository}/revision/{quote(self._source.revision, safe='')}"
        with closing(self._get(url, {}, params={"blobs": "true"})) as answer:
            self._refuse(answer, "the repository")
            document = _json(answer, self._source)
        commit = document.get("sha")
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise FetchError("SourceInvalid", f"{self._source}: the answer names no commit; is this the address of a hub?")
        self._commit = commit
        siblings = document.get("siblings")
        if not isinstance(siblings, list):
            raise FetchError("SourceInvalid", f"{self._source}: the answer lists no files; is this the address of a hub?")
        return Listing(commit, tuple(self._file(entry) for entry in siblings))

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[bytes]:
        """Yield a range of one file of the commit that was listed."""
        with closing(self._range(file, start, end)) as answer:
            try:
                while chunk := answer.raw.read1(CHUNK_BYTES, decode_content=False):
                    yield chunk
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise InterruptedReadError(f"the connection was cut ({type(error).__name__})") from error

    def _file(self, entry: Any) -> RemoteFile:
        """Return one file of the listing; the hub tells SHA-256 of large files and git's own hash of the others."""
        try:
            name, size, large = entry["rfilename"], entry.get("size"), entry.get("lfs")
            digests = [Digest("sha256", large["sha256"])] if large else []
            if not large and isinstance(entry.get("blobId"), str) and _COMMIT.fullmatch(entry["blobId"]):
                digests = [Digest("git", entry["blobId"])]
            if large and isinstance(large.get("size"), int):
                size = large["size"]
        except (TypeError, KeyError, AttributeError) as error:
            raise FetchError("SourceInvalid", f"{self._source}: the answer lists something that is no file.") from error
        if not isinstance(name, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise FetchError("SourceInvalid", f"{self._source}: the answer lists a file without name or size; the mirror is too old.")
        if any(not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(digest.value)) for digest in digests):
            raise FetchError("SourceInvalid", f"{self._source}: the digest listed for {name!a} is none.")
        return RemoteFile(name, size, tuple(digests), version=digests[0].value if digests else "")

    def _range(self, file: RemoteFile, start: int, end: int) -> requests.Response:
        url, is_remembered = self._location(file)
        answer = self._get(url, {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"})
        if (is_remembered or answer.history) and answer.status_code in (401, 403, 404, 410):
            self._locations.pop(file.name, None)
            answer.close()
            raise InterruptedReadError("the store behind the hub refuses the signed address")
        if not answer.ok:
            with closing(answer):
                self._refuse(answer, file.name)
        if answer.url != url:
            self._locations[file.name] = (answer.url, time.monotonic() + LOCATION_SECONDS)
        if answer.status_code != HTTPStatus.PARTIAL_CONTENT and start > 0:
            answer.close()
            raise FetchError(
                "SourceInvalid", f"{self._source} does not serve ranges of {file.name}, so it cannot be resumed; use a mirror that does."
            )
        total = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
        if total.isdecimal() and int(total) != file.size:
            answer.close()
            raise FetchError("WeightsTruncated", f"{file.name} of {self._source} has {total} bytes where the listing says {file.size}.")
        return answer

    def _location(self, file: RemoteFile) -> tuple[str, bool]:
        """Return where to ask, and whether that is a redirect of before: asking the hub for every part would hit its rate limit."""
        address, until = self._locations.get(file.name, ("", 0.0))
        if time.monotonic() < until:
            return address, True
        return f"{self._endpoint}/{self._source.repository}/resolve/{self._commit}/{quote(file.name)}", False

    def _get(self, url: str, headers: dict[str, str], params: dict[str, str] | None = None) -> requests.Response:
        if self._token and urlsplit(url).netloc == urlsplit(self._endpoint).netloc:
            headers = {**headers, "Authorization": f"Bearer {self._token}"}
        try:
            return self._session().get(url, headers=headers, params=params, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS))
        except requests.exceptions.SSLError as error:
            raise InterruptedReadError("the TLS certificate of the endpoint or the proxy is not trusted") from error
        except requests.exceptions.ProxyError as error:
            raise InterruptedReadError("the proxy does not answer or refuses") from error
        except requests.exceptions.TooManyRedirects as error:
            raise FetchError("SourceInvalid", f"{self._source} redirects in a circle.") from error
        except (requests.exceptions.RequestException, OSError) as error:
            raise InterruptedReadError(f"no answer from the endpoint ({type(error).__name__})") from error

    def _session(self) -> requests.Session:
        """Return this thread's own session: they are not made for several."""
        session: requests.Session | None = getattr(self._sessions, "session", None)
        if session is None:
            session = requests.Session()
            session.headers["User-Agent"] = "lmd-worker"
            session.max_redirects = 10
            self._sessions.session = session
        return session

    def _refuse(self, answer: requests.Response, what: str) -> None:
        """Raise what a refusal means; the hub says 401 for what does not exist as for what is private."""
        status = answer.status_code
        if status < HTTPStatus.BAD_REQUEST:
            return
        if status in _RETRIED:
            raise InterruptedReadError(f"the endpoint answered {status}", _retry_after(answer))
        said = answer.headers.get("X-Error-Code", "")
        if said == "RevisionNotFound":
            raise FetchError(
                "RevisionNotFound", f"{self._source.repository} has no revision {self._source.revision} (any more); name one that exists."
            )
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or said == "GatedRepo":
            raise self._forbidden()
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise FetchError("SourceNotFound", f"{self._source}: {what} does not exist; correct repository, revision or endpoint.")
        raise FetchError("FetchFailed", f"{self._source}: the endpoint answered {status} for {what}.")

    def _forbidden(self) -> FetchError:
        if self._token is None:
            return FetchError(
                "TokenMissing",
                f"{self._source} does not exist, or is private or gated: check its name, or set tokenSecretRef to a token with access.",
            )
        return FetchError(
            "SourceForbidden", f"{self._source} refuses the token: accept the model's terms with its account, or use one that may read it."
        )


def _json(answer: requests.Response, source: HubSource) -> dict[str, Any]:
    try:
        body = answer.raw.read(LARGEST_ANSWER_BYTES + 1, decode_content=True)
        document = json.loads(body) if len(body) <= LARGEST_ANSWER_BYTES else None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise InterruptedReadError(f"the connection was cut ({type(error).__name__})") from error
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise FetchError("SourceInvalid", f"{source}: the answer is not that of a hub; check the endpoint.")
    return document


def _retry_after(answer: requests.Response) -> float:
    """Return what the server asks to wait, in seconds; a date, which nobody sends here, counts as nothing."""
    asked = answer.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0
