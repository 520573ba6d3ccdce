"""What the user wrote: the policy's model, how it is read, checked, resolved and explained.

Importing this package imports nothing else: pydantic comes with ``resilmesh.policy.model``.
"""
