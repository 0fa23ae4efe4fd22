"""What a conversion or an export writes: safetensors, PyTorch files, the small files, the card."""
