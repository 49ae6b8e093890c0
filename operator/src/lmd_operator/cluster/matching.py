"""Whether a live object still has what we sent. Pure.

The API server adds defaults and writes quantities its own way, so equality is the wrong question. Every field we sent
must be there with an equal value; what we did not send is not ours.
"""

from __future__ import annotations

import re
from typing import Any

from lmd_operator.api.semantics import quantity
from lmd_operator.api.text import QUANTITY_PATTERN

_QUANTITY = re.compile(QUANTITY_PATTERN)


def covers(live: Any, sent: Any) -> bool:
    """Return whether `live` has every field of `sent` with an equal value.

    Lists must have the same length: what others add to a list we own as a whole is drift. Texts that are equal as
    quantities are equal (`1024Mi` is stored as `1Gi`). What is empty is often stored as nothing (`egress: []`).
    """
    if isinstance(sent, dict):
        if not sent:
            return live in ({}, None)
        return isinstance(live, dict) and all(covers(live.get(key), value) for key, value in sent.items())
    if isinstance(sent, list):
        if not sent:
            return live in ([], None)
        return isinstance(live, list) and len(live) == len(sent) and all(map(covers, live, sent))
    return bool(live == sent) or _equal_quantities(live, sent)


def _equal_quantities(live: Any, sent: Any) -> bool:
    if not (isinstance(live, str) and isinstance(sent, str)):
        return False
    return bool(_QUANTITY.match(live) and _QUANTITY.match(sent)) and quantity(live) == quantity(sent)
