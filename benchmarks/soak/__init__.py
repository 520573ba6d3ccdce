"""Endurance: a million calls of every kind, disturbed in every way, after which nothing may be left."""
