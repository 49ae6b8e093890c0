"""The same object without a cluster.

`lmd serve` builds the same Deployment and ConfigMap the operator applies, with a `Layout` that points into a temporary
folder, and then does what a kubelet does with them: mount, start, probe, watch, stop.
"""
