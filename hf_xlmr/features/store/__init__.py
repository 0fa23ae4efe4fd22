"""A folder of features: its files, what is noted of them, its shards, and the whole of it."""
