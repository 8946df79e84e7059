"""Playing a trained model."""
