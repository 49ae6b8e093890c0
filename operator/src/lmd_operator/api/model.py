"""`spec.model`: which model, where its weights come from, and what must be true of them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from lmd_operator.api.base import ApiModel, Rule
from lmd_operator.api.text import AbsolutePath, DnsName, ImageReference, SecretKey, Sha256, Url

SOURCES = ("huggingFace", "s3", "persistentVolumeClaim", "image", "path")


class SecretKeyReference(ApiModel):
    """One key of a Secret in the object's namespace."""

    name: DnsName
    """Name of the Secret."""
    key: SecretKey
    """Key in the Secret's data."""


class SecretReference(ApiModel):
    """A Secret in the object's namespace."""

    name: DnsName
    """Name of the Secret."""


class HuggingFaceSource(ApiModel):
    """A model repository on the Hugging Face hub or a mirror that speaks its protocol."""

    repository: Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Repository as `organisation/name`. A change fetches the new model and rolls the pods."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_./-]+$")] = "main"
    """Branch, tag or commit. Pin a commit for a reproducible service; the default follows `main` at the time of the fetch."""
    token_secret_ref: SecretKeyReference | None = None
    """Secret key with an access token. Only needed for private or gated repositories."""
    endpoint: Url | None = None
    """Base URL of a mirror. Default: the public hub."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="endpoint",
            message="must not carry a user or a password: use tokenSecretRef",
            cel="!has(self.endpoint) || !self.endpoint.contains('@')",
            holds=lambda self: self.endpoint is None or "@" not in self.endpoint,
        ),
    )


class S3Source(ApiModel):
    """A prefix in an S3-compatible object store."""

    uri: Annotated[str, StringConstraints(max_length=1024, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?$")]
    """`s3://bucket/prefix` of the model directory."""
    endpoint: Url | None = None
    """Base URL of the store. Default: AWS."""
    region: Annotated[str, StringConstraints(max_length=64, pattern=r"^[a-z0-9-]+$")] | None = None
    """Region of the bucket. Default: what the store answers."""
    credentials_secret_ref: SecretReference | None = None
    """Secret with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`. Default: anonymous."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="endpoint",
            message="must not carry a user or a password: use credentialsSecretRef",
            cel="!has(self.endpoint) || !self.endpoint.contains('@')",
            holds=lambda self: self.endpoint is None or "@" not in self.endpoint,
        ),
    )


class ClaimSource(ApiModel):
    """A directory on a PersistentVolumeClaim in the object's namespace, mounted read-only."""

    claim_name: DnsName
    """Name of the claim. With more than one replica it must be readable from several nodes."""
    path: Annotated[str, StringConstraints(max_length=1024, pattern=r"^([^/\x00][^\x00]*)?$")] = ""
    """Directory of the model inside the claim, relative, without `..`. Default: the claim's root."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="path",
            message="must stay inside the claim: remove every '..' segment",
            cel="!self.path.split('/').exists(part, part == '..')",
            holds=lambda self: ".." not in self.path.split("/"),
        ),
    )


class ImageSource(ApiModel):
    """An OCI image that carries the model directory, mounted as an image volume."""

    reference: ImageReference
    """Image reference; pin a digest for a reproducible service."""
    path: AbsolutePath = "/"
    """Directory of the model inside the image."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the kubelet pulls the image."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="path",
            message="must stay inside the image: remove every '..' segment",
            cel="!self.path.split('/').exists(part, part == '..')",
            holds=lambda self: ".." not in self.path.split("/"),
        ),
    )


class PathSource(ApiModel):
    """A directory that is already there: part of the worker image, or local for `lmd serve`."""

    path: AbsolutePath
    """Absolute directory. Below `/models`, `lmd serve` looks in its own model folder and can prepare the models it ships."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="path",
            message="must be a plain absolute directory: remove every '..' segment",
            cel="!self.path.split('/').exists(part, part == '..')",
            holds=lambda self: ".." not in self.path.split("/"),
        ),
    )


class ModelSource(ApiModel):
    """Where the weights come from. Exactly one is set; only safetensors are ever read."""

    hugging_face: HuggingFaceSource | None = None
    """A hub repository."""
    s3: S3Source | None = None
    """An S3-compatible object store."""
    persistent_volume_claim: ClaimSource | None = None
    """A claim that already holds the model."""
    image: ImageSource | None = None
    """An OCI image that holds the model."""
    path: PathSource | None = None
    """A directory of the worker image, or a local one."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="",
            message=f"must set exactly one of {', '.join(SOURCES)}",
            cel=f"[{', '.join(f'has(self.{name})' for name in SOURCES)}].filter(given, given).size() == 1",
            holds=lambda self: sum(value is not None for _, value in self) == 1,
        ),
    )


class ModelCache(ApiModel):
    """A claim that replicas share, filled once: by a Job, for which they wait."""

    claim_name: DnsName
    """Name of the claim. The Job mounts it writable, replicas read-only."""
    on_delete: Literal["Retain", "Delete"] = "Retain"
    """What happens to the files when the object is deleted. Delete removes them once no other object uses them."""


class Verification(ApiModel):
    """What must be true of the files before they are served."""

    sha256: Annotated[dict[Annotated[str, StringConstraints(min_length=1, max_length=255)], Sha256], Field(min_length=1, max_length=2000)]
    """File name in the model directory to its SHA-256 digest in lower-case hex. A mismatch stops the pod before it loads."""


class Model(ApiModel):
    """The model that is served."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")] | None = (
        None
    )
    """Name that clients use in URLs and requests. Default: `metadata.name`. It cannot be changed: clients depend on it."""
    source: ModelSource
    """Where the weights come from. A change rolls the pods."""
    cache: ModelCache | None = None
    """A claim shared by all replicas, so that weights are fetched once. Default: every pod fetches its own.

    Only for huggingFace and s3. What a branch stood for when it was fetched stays, until a commit is named.
    """
    verify: Verification | None = None
    """Digests to check. Default: none beyond those the source itself provides."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Default off: model code then comes from the transformers library only."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="cache",
            message="is for weights that are fetched: remove it, or set source to huggingFace or s3",
            cel="!has(self.cache) || has(self.source.huggingFace) || has(self.source.s3)",
            holds=lambda self: self.cache is None or self.source.hugging_face is not None or self.source.s3 is not None,
        ),
        Rule(
            field="name",
            message="cannot be changed: clients use it in URLs and requests. Create another object for another name",
            cel="has(self.name) == has(oldSelf.name) && (!has(self.name) || self.name == oldSelf.name)",
            holds=None,
        ),
    )
