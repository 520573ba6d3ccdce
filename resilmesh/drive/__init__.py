"""Performing decisions: the two loops everything runs on, and the decorator for functions."""
