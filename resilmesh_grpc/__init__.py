"""A service mesh's traffic policy in grpcio: channels, a policy for a channel one was given, and interceptors for servers.

    channel = resilmesh_grpc.channel(mesh, "inventory.prod.svc")
    stub = InventoryStub(channel)                                    # generated code, unchanged
"""

# Imported at once: a module and what it is there for may have one name, and whoever comes later must find the latter.
from resilmesh_grpc.aio_channel import aio_channel
from resilmesh_grpc.aio_server import aio_server_interceptor
from resilmesh_grpc.channel import channel
from resilmesh_grpc.credentials import server_credentials
from resilmesh_grpc.intercept import aio_interceptors, intercept
from resilmesh_grpc.server import server_interceptor

__all__ = ["aio_channel", "aio_interceptors", "aio_server_interceptor", "channel", "intercept", "server_credentials", "server_interceptor"]
