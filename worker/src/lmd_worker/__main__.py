"""`lmd-worker`: what a worker container runs, and what the kubelet runs in it.

Each command imports only what it needs; `started` runs every few seconds beside ranks that load.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lmd_worker.environment import Environment

if TYPE_CHECKING:
    from lmd_worker.probes import Finding

ENDED_STATUS = 128 + signal.SIGTERM
"""As of a shell whose command was ended, and of the model server."""
USAGE = """usage: lmd-worker COMMAND

  fetch   bring the weights, whole and verified, or say why not (init container)
  remove  give up a model in a shared cache; it goes with its last user (Job)
  serve   check what is mounted, answer probes, and become the model server (the container's command)
  inspect say what a model is, from its configuration and headers (Job; with a source, on a terminal: see lmd inspect --help)
  started end with 0 when the model is loaded; end the model server when it never will be (startup probe)
  drain   turn unready and wait for running answers (pre-stop hook)

  merge ARCHIVE   show what becomes of an archive's own configuration (used by lmd render)
  front-door   run HAProxy before the model server (the command of the container beside it)

Each is told what to do by LMD_* variables; see lmd_worker/environment.py.
"""


def fetch(environment: Environment) -> int:
    """Bring the weights."""
    from lmd_worker import logs
    from lmd_worker.weights import fetch as weights

    logs.configure(0)
    return weights.run(os.environ, environment.termination_message_path)


def remove(environment: Environment) -> int:
    """Remove a shared model with its last user."""
    from lmd_worker import logs
    from lmd_worker.weights import shared

    logs.configure(0)
    return shared.run(os.environ, environment.termination_message_path)


def serve(environment: Environment) -> int:
    """Become the model server, or say what forbids it."""
    # process 1 has no default action for it, and would become the model server all the same
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ENDED_STATUS))
    from lmd_worker import bootstrap

    problems = bootstrap.serve(environment, os.environ)
    for problem in problems:
        print(f"lmd-worker serve: {problem}", file=sys.stderr)
    return 1


def started(environment: Environment) -> int:
    """Probe for a loaded model."""
    from lmd_worker import probes

    return _tell(probes.started(environment))


def drain(environment: Environment) -> int:
    """Wait until nothing is in flight."""
    from lmd_worker import probes

    return _tell(probes.drain(environment, os.environ))


def front_door(environment: Environment) -> int:
    """Run the front door until it ends."""
    from lmd_worker import front_door as door

    return door.serve(environment)


def inspect(environment: Environment) -> int:
    """Say what the model of source.json is, in the last words."""
    from lmd_worker import logs
    from lmd_worker.weights import telling

    logs.configure(0)
    return telling.run(os.environ, environment.termination_message_path)


COMMANDS: dict[str, Callable[[Environment], int]] = {
    "fetch": fetch,
    "inspect": inspect,
    "remove": remove,
    "serve": serve,
    "started": started,
    "drain": drain,
    "front-door": front_door,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 or 1, 2 for a wrong command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if given[:1] == ["inspect"] and len(given) > 1:
        from lmd_worker.weights import inspect as inspection

        return inspection.main(given[1:], os.environ)
    if given[:1] == ["merge"]:
        from lmd_worker import merging

        return merging.main(given[1:], sys.stdin.read())
    if len(given) != 1 or given[0] not in COMMANDS:
        print(USAGE, end="", file=sys.stderr)
        return 2
    return COMMANDS[given[0]](Environment.from_variables(os.environ))


def _tell(finding: Finding) -> int:
    print(finding.line)
    return 0 if finding.good else 1


if __name__ == "__main__":
    sys.exit(main())
