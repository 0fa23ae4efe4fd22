"""Between fairseq's network and Transformers': architecture, configuration, and where each weight's bytes come from."""
