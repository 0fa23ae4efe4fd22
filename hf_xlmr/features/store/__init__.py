"""A folder of features: its files, its records, its shards, and the folder as a whole."""
