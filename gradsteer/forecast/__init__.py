"""Rates and doses from forward passes."""
