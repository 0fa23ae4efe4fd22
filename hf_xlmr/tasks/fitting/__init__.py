"""Networks with heads, trained on Transformers' Trainer, and the folder that holds the result."""
