"""What an evaluation writes: results, predictions, and published scores to compare with."""
