"""What each optimizer keeps: one table per library, and the registry that finds a row."""
