"""Strings and numbers with bounds, so that every bound reaches the CRD. Patterns are RE2 and anchored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, WithJsonSchema

DNS_NAME_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
SECRET_KEY_PATTERN = r"^[-._a-zA-Z0-9]+$"
URL_PATTERN = r"^https?://[^\s/]+(/[^\s]*)?$"
ABSOLUTE_PATH_PATTERN = r"^/[^\x00]*$"
IMAGE_PATTERN = r"^[^\s]+$"
SHA256_PATTERN = r"^[a-f0-9]{64}$"
QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
LABEL_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE_PATTERN = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$"
PERCENT_PATTERN = r"^(100|[1-9]?[0-9])%$"

DnsName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_NAME_PATTERN)]
SecretKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=SECRET_KEY_PATTERN)]
Url = Annotated[str, StringConstraints(max_length=2048, pattern=URL_PATTERN)]
AbsolutePath = Annotated[str, StringConstraints(max_length=1024, pattern=ABSOLUTE_PATH_PATTERN)]
ImageReference = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=IMAGE_PATTERN)]
Sha256 = Annotated[str, StringConstraints(max_length=64, pattern=SHA256_PATTERN)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=LABEL_KEY_PATTERN)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE_PATTERN)]
Quantity = Annotated[str, StringConstraints(max_length=32, pattern=QUANTITY_PATTERN)]
"""A Kubernetes quantity, as text: `8Gi`, `500m`, `2`."""
Percent = Annotated[str, StringConstraints(max_length=4, pattern=PERCENT_PATTERN)]

DEGREE_OR_AUTO = "a whole number from 1 to 1024, or Auto"
COUNT_OR_PERCENT = "a whole number from 0 to 1000, or a percentage from 0% to 100%"
"""The same words from the API server and from us."""

DegreeOrAuto = Annotated[
    Annotated[int, Field(ge=1, le=1024)] | Literal["Auto"],
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "x-lmd-rule": "type(self) == int ? self >= 1 && self <= 1024 : self == 'Auto'",
            "x-lmd-message": f"must be {DEGREE_OR_AUTO}",
        }
    ),
]
CountOrPercent = Annotated[
    Annotated[int, Field(ge=0, le=1000)] | Percent,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
            "x-lmd-rule": f"type(self) == int ? self >= 0 && self <= 1000 : string(self).matches('{PERCENT_PATTERN}')",
            "x-lmd-message": f"must be {COUNT_OR_PERCENT}",
        }
    ),
]
