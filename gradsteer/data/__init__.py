"""Formats, chat templates, response rows and piles."""
