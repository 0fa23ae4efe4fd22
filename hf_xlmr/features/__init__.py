"""Vectors of many texts: tokenized in chunks, packed, computed without padding, pooled, and written shard by shard."""
