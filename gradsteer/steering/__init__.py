"""Editing weights along a vector, and planning the conditions."""
