"""The gRPC adapter. Not there yet: a policy with `protocol: GRPC` is refused until it is."""
