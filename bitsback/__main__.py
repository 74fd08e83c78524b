"""Entry point of ``python -m bitsback``."""

from bitsback.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
