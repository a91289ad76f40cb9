"""Generated code of meshgate.broker.v1; regenerate with gateway/proto/generate.sh."""
