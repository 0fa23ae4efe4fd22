"""`python -m hf_xlmr` is the program `hf-xlmr`."""

from __future__ import annotations

from hf_xlmr.cli import main

if __name__ == "__main__":
    main()
