"""`python -m lmd_plane`: a control plane from the shell. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lmd_plane.binaries import NODE, PLANE, Say, build, cache_folder
from lmd_plane.components import ARGUMENTS
from lmd_plane.errors import PlaneError
from lmd_plane.node.config import NODE_NAME
from lmd_plane.node.node import Node
from lmd_plane.plane import Plane

DEFAULT_NODES = 4
VOLUMES = 8
"""Claims that a real node started here can serve, each once: nothing empties a volume for the next claim."""


def main() -> int:
    """Do what the command line asks; return the exit status."""
    options = _parser().parse_args()
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {words}", file=sys.stderr, flush=True)

    try:
        match options.command:
            case "build":
                for path in build(options.programs or PLANE, say=say).values():
                    print(path)
            case "up":
                _up(options.folder, options.nodes, say=say)
            case "down":
                Plane.down(options.folder)
                say(f"nothing of {options.folder} is left")
            case "node":
                _node(options.folder, options.image, options.packages, say=say)
            case "nodes":
                Plane.load(options.folder).add_nodes(options.count)
                say(f"{options.count} nodes are Ready")
            case _:
                _act(Plane.load(options.folder), options.command, options.component)
                say(f"{options.component}: {options.command}")
    except PlaneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _up(folder: Path, nodes: int, *, say: Say) -> None:
    binaries = build(PLANE, say=say)
    plane = Plane.up(folder, binaries)
    say(f"the API server answers at {plane.site.api_url}")
    if nodes:
        plane.add_nodes(nodes)
        say(f"{nodes} nodes of eight fake GPUs are Ready")
    print(f"export KUBECONFIG={plane.kubeconfig}")
    print(f"export PATH={binaries['kubectl'].parent}:$PATH")


def _node(folder: Path, images: list[str], packages: Path | None, *, say: Say) -> None:
    binaries = build(NODE, say=say)
    node = Node.up(Plane.load(folder), binaries, packages)
    say(f"{NODE_NAME} is Ready")
    for image in images:
        here, _, there = image.partition("=")
        node.load(here, there)
        say(f"{NODE_NAME} has {there or here}")
    node.offer_volumes(VOLUMES)
    say(f"{NODE_NAME} has volumes for {VOLUMES} claims")
    print(f"nsenter --net=/proc/{node.namespace_pid}/ns/net   # before a command that talks to a Service or a pod")


def _act(plane: Plane, command: str, component: str) -> None:
    {"pause": plane.pause, "resume": plane.resume, "kill": plane.kill, "start": plane.start, "restart": plane.restart}[command](component)


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lmd_plane", description="A real Kubernetes control plane on this machine, for tests.")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--folder", type=_absolute, default=cache_folder() / "cluster", help="where it lives (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    build_ = commands.add_parser("build", help="build programs into the cache")
    build_.add_argument("programs", nargs="*", help="default: what a plane needs")
    up = commands.add_parser("up", parents=[place], help="build, start and print how to reach it")
    up.add_argument("--nodes", type=int, default=DEFAULT_NODES, help="fake nodes of eight GPUs (default: %(default)s)")
    commands.add_parser("down", parents=[place], help="end it and remove its folder")
    commands.add_parser("nodes", parents=[place], help="have this many fake nodes").add_argument("count", type=int)
    node = commands.add_parser("node", parents=[place], help="add a real node, with images of buildah's and volumes")
    node.add_argument("--image", action="append", default=[], help="an image it has, or IMAGE=NAME if it is called NAME there")
    node.add_argument("--packages", type=_absolute, help="a folder of Python packages that containers find")
    for name, words in (
        ("pause", "stop a component where it stands"),
        ("resume", "let a paused component go on"),
        ("kill", "end a component at once"),
        ("start", "start a component that was killed"),
        ("restart", "kill a component and start it again"),
    ):
        commands.add_parser(name, parents=[place], help=words).add_argument("component", choices=ARGUMENTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
