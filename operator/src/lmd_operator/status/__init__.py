"""What was found -> what a user is told: the whole `status` of one object. Pure; the clock is a parameter.

| module | holds |
|---|---|
| `observation` | what was found in the cluster, and the counts that are read from it |
| `causes` | why a replica does not answer, from its pod, most telling first |
| `tasks` | why replicas wait for a Job |
| `weights` | why weights are not there yet, and how far they are |
| `verification` | whether ranks run what is planned, from what they report and from last words |
| `refusals` | what the API server says no to, in one reason and one remedy |
| `conditions` | the table of the six conditions, and when each moves |
| `summary` | the whole status of an accepted spec, of a refused one, and of one that cannot be planned yet |
"""

from lmd_operator.status.observation import Observed
from lmd_operator.status.summary import flips, refused, summarize, undecided

__all__ = ["Observed", "flips", "refused", "summarize", "undecided"]
