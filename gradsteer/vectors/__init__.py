"""Vectors of one tensor a parameter: algebra, transforms, files."""
