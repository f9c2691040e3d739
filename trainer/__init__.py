"""Model-agnostic training: processes, signals, checkpoints and logs."""
