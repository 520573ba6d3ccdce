"""What a policy costs a gRPC client."""
