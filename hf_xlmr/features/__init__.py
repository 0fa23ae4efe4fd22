"""Computes vectors of many texts: tokenizes, packs, computes without padding, pools, and writes shard by shard."""
