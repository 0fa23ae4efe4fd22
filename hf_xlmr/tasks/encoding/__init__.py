"""Examples as the numbers that a network takes, and its answers as predictions."""
