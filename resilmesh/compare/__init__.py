"""The same policy and the same calls, bare, through the library and through a real Envoy: ``resilmesh compare``.

START HERE: ``planes`` says what is compared, ``scenarios`` in which situations, ``judge`` when it differs, ``cost``
what it takes. ``service`` and ``traffic`` run in processes of their own: the two ends of every call.
"""
