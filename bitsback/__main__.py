"""``python -m bitsback``."""

from bitsback.cli import main

if __name__ == "__main__":
    main()
