"""fairseq's formats live here and nowhere else; installs as `hf_xlmr.conversion`."""
