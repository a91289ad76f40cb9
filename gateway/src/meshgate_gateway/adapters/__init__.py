"""What speaks to the world outside: the store, Dapr, gRPC messages."""
