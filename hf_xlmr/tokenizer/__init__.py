"""Texts to fairseq's ids and back."""
