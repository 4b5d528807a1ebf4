"""Pile-average gradients."""
