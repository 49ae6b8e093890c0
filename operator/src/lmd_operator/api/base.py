"""What all API models share: one frozen base, and rules that the API server and we both enforce.

A `Rule` says one thing about several fields. It carries the sentence a user reads, the CEL expression the CRD carries
to the API server, and the same condition in Python for `lmd validate`, the local run and the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition over the fields of one model.

    `field` is the JSON path of the field to change, relative to the model. `holds` is None for rules about a change
    (CEL's `oldSelf`), which only the API server can judge.
    """

    field: str
    message: str
    cel: str
    holds: Callable[[Any], bool] | None


class ApiModel(BaseModel):
    """Base of everything in the object: immutable values, camelCase on the wire, no silent conversion of types.

    Unknown fields are ignored here, because during an upgrade the installed CRD may be newer than the operator;
    `lmd_operator.api.parse` forbids them where a person wrote the document.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()
