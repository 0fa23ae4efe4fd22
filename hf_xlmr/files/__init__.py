"""Files that appear whole: atomic writes, staged folders, locks, hashes, strict JSON, and the cache's place."""
