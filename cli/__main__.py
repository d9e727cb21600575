"""What the installed command `sda-features` runs; also `python -m sda_features.cli`."""

from __future__ import annotations

import sys

from .failures import explain


def main() -> None:
    """Run the command line; where click itself is missing, say what to install."""
    try:
        from .main import main
    except ModuleNotFoundError as error:
        sys.exit(f"error: {explain(error)}")
    main()


if __name__ == "__main__":
    main()
