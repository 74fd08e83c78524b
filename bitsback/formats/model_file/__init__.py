"""A network for a receiver without the data."""
