"""Neural networks as Flax NNX modules; they know nothing of training, files or devices."""
