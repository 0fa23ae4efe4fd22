"""Converts texts to fairseq's ids and back."""
