"""A real Kubernetes control plane for tests: etcd, API server, controllers, scheduler, and KWOK in the place of nodes.

Everything is built from Go modules (`binaries`), listens on loopback and lives in one folder (`plane`); a janitor ends it
with its owner. `faults` stands between a client and the API server and lets things go wrong; `audit` tells who asked what.
A cluster of somebody else's can take its place (`foreign`).
`python -m lmd_plane` does the same from a shell.
"""
