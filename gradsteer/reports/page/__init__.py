"""The page that reads like a paper: ``report.html`` and ``report.md`` from what a directory holds."""
