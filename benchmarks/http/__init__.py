"""The cost of a request through a guarded HTTP client."""
