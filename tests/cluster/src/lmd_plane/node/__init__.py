"""A real node beside the control plane: kubelet, containerd, runc and kube-proxy in a network namespace of their own.

Nothing of it can reach another machine, and the rules that kube-proxy writes are not this machine's: the namespace has a
bridge for the pods and no way out but a relay to the API server, which also leads the API server in, for `kubectl logs`, `exec`
and `port-forward`. It ends with the process that holds it.
"""
