"""What we remember between calls. No clock, no chance, no I/O: ``now`` and ``rng`` are arguments.

Rules for every file here. A method that a successful call runs takes no lock and makes no call between
loading and storing a counter: on a GIL build such an update loses nothing (tests/engine/test_threads.py).
Everything else runs under the object's own lock, and nothing is called out to while it is held.
"""
