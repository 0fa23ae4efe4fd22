"""The encoder over packed batches: its weights, linear layers by the fastest kernel, and int8."""
