"""What a fine-tuning task is, in one class for each, found by its name."""
