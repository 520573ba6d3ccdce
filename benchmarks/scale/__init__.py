"""A policy of many services: loading, matching, and calls while it is reloaded."""
