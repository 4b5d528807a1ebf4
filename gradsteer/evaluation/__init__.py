"""Statistics and metrics of judged responses."""
