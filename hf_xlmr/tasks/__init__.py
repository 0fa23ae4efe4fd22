"""XNLI, MLQA and named entities: their data as published, and their scores as the papers count them."""
