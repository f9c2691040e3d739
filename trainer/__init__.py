"""Training any model safely: processes, signals, checkpoints, logs. Knows no method."""
