"""Chat formats, templates and loss masks, response rows and piles."""
