"""What may go wrong, in words for the person at the terminal."""

from __future__ import annotations


class PlaneError(Exception):
    """The control plane cannot be built, started or used; the message names the remedy."""


class RefusedError(PlaneError):
    """The API server answered, but not with what was asked for."""


class OverdueError(PlaneError):
    """Something that was waited for did not happen in time."""
