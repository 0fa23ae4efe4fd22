"""XLM-R out of fairseq and into Transformers, exactly."""

__all__ = ["__version__"]

__version__ = "0.1.0"
