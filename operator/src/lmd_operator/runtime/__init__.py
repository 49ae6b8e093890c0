"""What a controller runtime gives in Go: a work queue, leadership, health, metrics, logs."""
