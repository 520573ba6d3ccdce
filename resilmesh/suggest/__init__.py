"""``resilmesh suggest``: from what was observed to a policy to begin with.

START HERE: ``profile`` is what was observed, ``advice`` what follows from it (each value with its reason), ``write`` the policy's text.
"""
