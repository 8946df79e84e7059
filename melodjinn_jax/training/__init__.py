"""Training: the state and its step, the phases, checkpoints, and the work directory."""
