"""Questions asked of a run, a model or a configuration, answered in a table."""
