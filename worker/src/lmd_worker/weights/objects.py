"""S3-compatible object stores, by obstore: a prefix is a model directory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import obstore
import requests
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from lmd_worker.errors import FetchError
from lmd_worker.weights.listing import Listing, RemoteFile
from lmd_worker.weights.remote import InterruptedReadError
from lmd_worker.weights.source import S3Source

DEFAULT_REGION = "us-east-1"
"""What stores that are not AWS expect in signatures when nobody says otherwise."""
CHUNK_BYTES = 2**20
_STATUS = re.compile(r"status code: (\d{3})")
"""How obstore 0.12 words a refusal; a listing has no error class of its own for it."""
_KEY_ID, _KEY, _SESSION = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"


class S3:
    """One prefix of one bucket."""

    def __init__(self, source: S3Source, variables: Mapping[str, str]) -> None:
        self._source = source
        self._store = _store(source, variables)
        self._is_anonymous = not variables.get(_KEY_ID)

    def listing(self) -> Listing:
        """Return the objects directly below the prefix. The revision is a digest over their names, sizes and entity tags."""
        prefix = self._source.prefix
        try:
            found: Any = obstore.list_with_delimiter(self._store, prefix or None)["objects"]
        except (BaseError, OSError) as error:
            raise self._meaning(error, "the bucket") from error
        files = []
        for entry in found:
            name = entry["path"].removeprefix(prefix).lstrip("/")
            if name:  # the prefix itself can be an object, left by consoles as a folder mark
                files.append(RemoteFile(name, entry["size"], version=entry["e_tag"] or ""))
        if not files:
            raise FetchError("SourceNotFound", f"{self._source} holds nothing; correct spec.model.source.s3.uri.")
        told = "\n".join(f"{file.name} {file.size} {file.version}" for file in sorted(files, key=lambda file: file.name))
        return Listing(hashlib.sha256(told.encode()).hexdigest()[:40], tuple(files))

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[memoryview]:
        """Yield a range of one object, as long as it is the one that was listed."""
        path = f"{self._source.prefix}/{file.name}".lstrip("/")
        options: Any = {"range": (start, end), **({"if_match": file.version} if file.version else {})}
        try:
            for chunk in obstore.get(self._store, path, options=options).stream(min_chunk_size=CHUNK_BYTES):
                yield memoryview(chunk)
        except PreconditionError as error:
            raise FetchError("SourceChanged", f"{file.name} of {self._source} changed while it was fetched; it is fetched anew.") from error
        except (BaseError, OSError) as error:
            raise self._meaning(error, file.name) from error

    def _meaning(self, error: Exception, what: str) -> Exception:
        """Return what an error means. Its own text is not passed on: it can hold headers and addresses."""
        told = _STATUS.search(str(error))
        status = told[1] if told else ""
        is_refused = isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or status in ("401", "403")
        if is_refused or "access key" in str(error).lower():  # an unknown one is a 404 for some stores
            if self._is_anonymous:
                return FetchError("TokenMissing", f"{self._source} may not be read anonymously; set credentialsSecretRef.")
            return FetchError("SourceForbidden", f"{self._source} refuses the credentials; let them list the bucket and read its objects.")
        if isinstance(error, FileNotFoundError) or status == "404":
            return FetchError("SourceNotFound", f"{self._source}: {what} does not exist; correct spec.model.source.s3.")
        if status in ("301", "307", "308", "400"):
            return FetchError(
                "SourceInvalid", f"{self._source}: the store answers {status}; set spec.model.source.s3.region to the bucket's own."
            )
        return InterruptedReadError(f"the store answered {status}" if status else "no answer from the store")


def _store(source: S3Source, variables: Mapping[str, str]) -> S3Store:
    config: Any = {"region": source.region or _region(source)}
    if source.endpoint:
        config["endpoint"] = source.endpoint
    if variables.get(_KEY_ID):
        config |= {"access_key_id": variables[_KEY_ID], "secret_access_key": variables.get(_KEY, "")}
        if variables.get(_SESSION):
            config["session_token"] = variables[_SESSION]
    else:
        config["skip_signature"] = True
    return S3Store(
        source.bucket,
        config=config,
        client_options={"allow_http": True, "connect_timeout": "10s", "timeout": "300s", "user_agent": "lmd-worker"},
        retry_config={"max_retries": 0},  # the parts of a file are tried again by us, from where they stopped
    )


def _region(source: S3Source) -> str:
    """Return the region AWS names for the bucket; it says so to anybody, in a header."""
    if source.endpoint:
        return DEFAULT_REGION
    try:
        answer = requests.head(f"https://{source.bucket}.s3.amazonaws.com", timeout=10, allow_redirects=False)
    except requests.exceptions.RequestException:
        return DEFAULT_REGION
    return answer.headers.get("x-amz-bucket-region", DEFAULT_REGION)
