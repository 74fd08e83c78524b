"""Questions asked of a run, a model or a configuration, answered in a table."""

__all__: list[str] = []
