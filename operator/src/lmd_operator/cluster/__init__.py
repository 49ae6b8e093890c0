"""The only door to Kubernetes: one connection, one way to write, caches of what is there."""
