"""What `lmd-worker fetch` is told: which model, from where, into which directory, with which digests.

The operator renders it as `source.json`; it never holds a secret. Tokens and keys come by environment from Secrets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from lmd_worker.errors import SettingsError

SOURCE_FILE = "LMD_SOURCE_FILE"
"""Environment variable: the path of source.json. Default: `DEFAULT_FILE`."""
HUB_TOKEN = "HF_TOKEN"
"""Environment variable: the hub's access token. Default: none, which open models do not need."""
PUBLIC_HUB = "https://huggingface.co"

_URL = r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$"
"""Without user, password or query: this text stands in messages."""

DEFAULT_FILE = "/etc/lmd/source.json"

Digest = Annotated[str, StringConstraints(pattern=r"^[a-f0-9]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class HubSource(_Part):
    """A repository on the Hugging Face hub or a mirror that speaks its protocol."""

    kind: Literal["huggingFace"]
    repository: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$")
    revision: str = Field(default="main", pattern=r"^[A-Za-z0-9_./-]+$")
    endpoint: str = Field(default=PUBLIC_HUB, pattern=_URL)

    def __str__(self) -> str:
        """Return what messages call it."""
        return f"{self.repository}@{self.revision} at {self.endpoint}"


class S3Source(_Part):
    """A prefix in an S3-compatible store; without AWS_ACCESS_KEY_ID in the environment requests are anonymous."""

    kind: Literal["s3"]
    uri: str = Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?$")
    endpoint: str | None = Field(default=None, pattern=_URL)
    region: str | None = None

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """Key of the model directory, without a slash at either end; empty for the bucket's root."""
        return self.uri.removeprefix("s3://").partition("/")[2].strip("/")

    def __str__(self) -> str:
        """Return what messages call it."""
        return f"{self.uri} at {self.endpoint}" if self.endpoint else self.uri


class DirectorySource(_Part):
    """A directory that is already there: it is checked where it is, and nothing is copied."""

    kind: Literal["directory"]
    path: str = Field(pattern=r"^/")

    def __str__(self) -> str:
        """Return what messages call it."""
        return self.path


class Order(_Part):
    """Everything a fetch is told."""

    source: Annotated[HubSource | S3Source | DirectorySource, Field(discriminator="kind")]
    into: str = Field(pattern=r"^/", description="Absolute model directory; it appears whole or not at all.")
    sha256: dict[str, Digest] = {}
    refresh: bool = Field(
        default=True, description="Ask whether a branch has moved; never in a shared cache, where others read what would be replaced."
    )
    remote_code: bool = Field(default=False, description="Take the model's own Python files too.")
    bring: bool = Field(default=True, description="Fetch what is missing; if not, only look whether it is there, whole.")
    user: str | None = Field(
        default=None, pattern=r"^[a-z0-9.-]{1,128}$", description="Who uses a shared directory: it stays as long as anybody does."
    )


def file(variables: Mapping[str, str]) -> Path:
    """Return where source.json is."""
    return Path(variables.get(SOURCE_FILE) or DEFAULT_FILE)


def read(path: Path) -> Order:
    """Read source.json. Raises `SettingsError` naming the first wrong field."""
    try:
        document: Any = json.loads(path.read_text())
        return Order.model_validate(document)
    except OSError as error:
        raise SettingsError(f"reading {path}: {error.strerror}. Mount the rendered source.json there.") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise SettingsError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}. The operator and the worker image are of different versions."
        ) from error
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}.") from error
