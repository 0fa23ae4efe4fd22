"""A fairseq checkpoint, opened but not loaded: pickles as data, containers, options, old names, parts."""
