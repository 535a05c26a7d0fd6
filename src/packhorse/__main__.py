"""`python -m packhorse`, and the entry point of the `packhorse` command."""

from __future__ import annotations

from packhorse.cli import main

if __name__ == "__main__":
    main()
