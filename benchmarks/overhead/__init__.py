"""The cost of a guarded function, and of importing the library."""
