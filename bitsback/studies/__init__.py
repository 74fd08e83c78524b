"""Questions asked of a run or a configuration, answered in a table."""
