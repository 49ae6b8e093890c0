"""What the API server says no to, as one reason and one sentence with the remedy.

It says so in prose alone, both of a child and of a pod that the Deployment's ReplicaSet could not create. The phrases are
those of Kubernetes (quota and pod security admission, RBAC, validation) and of `lmd_operator.cluster.door`.
"""

from __future__ import annotations

IMAGE_VOLUMES = (
    "the cluster has no image volumes for spec.model.source.image: use Kubernetes 1.35 or newer, or 1.33 with the feature gate "
    "ImageVolume, or put the model on a claim"
)
_REFUSALS = (
    ("exceeded quota", "QuotaExceeded", "raise the namespace's ResourceQuota, or ask for less"),
    ("violates PodSecurity", "Forbidden", "lower the namespace's pod-security level, or use a namespace that allows such pods"),
    ("must specify a volume type", "ImageVolumesMissing", IMAGE_VOLUMES),
    ("image: field not declared in schema", "ImageVolumesMissing", IMAGE_VOLUMES),
    ("was not made by this operator", "ForeignObject", ""),
    (" belongs to ", "ForeignObject", ""),
    ("limitrange", "Forbidden", "stay within the namespace's LimitRange by spec.template.resources"),
    ("forbidden", "Forbidden", "allow it to the operator's or the namespace's service account, or correct the spec"),
    ("denied the request", "Forbidden", "satisfy the admission policy that says so, or exempt this object from it"),
    ("is invalid", "ChildInvalid", "correct the field of the spec that it comes from"),
)
"""Phrase, reason, remedy; the first that fits wins. An empty remedy is already in the sentence."""
_OTHER = ("ChildRefused", "correct what it names; it is tried again")


def refusal(sentence: str) -> tuple[str, str]:
    """Return the reason and the sentence with a remedy."""
    lowered = sentence.lower()
    reason, remedy = next((row[1:] for row in _REFUSALS if row[0].lower() in lowered), _OTHER)
    text = clause(sentence, 800)
    return reason, f"{text}; {remedy}" if remedy else text


def clause(text: str, limit: int = 400) -> str:
    """Return text as a part of a sentence: on one line, without its full stop, of at most `limit` characters."""
    line = " ".join(text.split()).rstrip(". ")
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"
