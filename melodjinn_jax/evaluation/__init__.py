"""What a trained model is worth: onsets, labels, control, the report."""
