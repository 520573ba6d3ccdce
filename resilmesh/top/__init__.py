"""``resilmesh top``: a running program, watched in a terminal.

START HERE: ``figures`` makes rates and quantiles of two readings, ``view`` lines of those and of the keys that were pressed; neither knows
a terminal. ``poll`` asks the program, ``terminal`` is the screen and the keyboard, ``watch`` the loops.
"""
