"""How a command of an init container or a Job ends when it cannot do what it was told."""

from __future__ import annotations

import logging
from pathlib import Path

from lmd_worker import lastwords

log = logging.getLogger(__name__)


def failed(last_words: Path | None, sentence: str) -> int:
    """Log the sentence and leave it as last words; return the exit status."""
    log.error("%s", sentence)
    lastwords.write(last_words, sentence)
    return 1
