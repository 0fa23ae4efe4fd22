"""fairseq's calls over Transformers' network."""
