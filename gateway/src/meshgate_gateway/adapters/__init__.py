"""Second sides of the gateway's ports: SQLite, Dapr, protobuf."""
