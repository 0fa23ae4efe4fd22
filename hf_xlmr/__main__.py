"""`python -m hf_xlmr` is the program `hf-xlmr`."""

from __future__ import annotations

from hf_xlmr.cli import run

if __name__ == "__main__":
    run()
