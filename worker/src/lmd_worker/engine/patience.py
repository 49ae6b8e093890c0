"""How long the next turn waits for those who speak with clients.

Between two turns they pass on what the last one brought, and come back with the requests that have arrived meanwhile. Where the turns
are computed by the same cores, that work costs a turn as much time beside it as before it, and a request that comes back in time begins
one turn sooner. A device of its own computes on meanwhile: there nothing is waited for.
"""

from __future__ import annotations

MOST = 0.1
"""Of a turn's time: where they take longer than that, turns are so short that a request loses little by waiting for the next."""
IMPATIENT_TURNS = 20
"""Without waiting, after they were not back in time."""


class Patience:
    """Decides before each turn; rank 0 alone, as the others wait for its word anyway."""

    def __init__(self, *, shares_cores: bool) -> None:
        self._shares_cores = shares_cores
        self._impatient = 0

    def seconds(self, turn_seconds: float) -> float:
        """Return how long to wait at most after a turn that took so long; 0 is not at all."""
        if not self._shares_cores:
            return 0.0
        if self._impatient:
            self._impatient -= 1
            return 0.0
        return MOST * turn_seconds

    def learn(self, were_back: bool) -> None:
        """Take in how the wait ended."""
        self._impatient = 0 if were_back else IMPATIENT_TURNS
