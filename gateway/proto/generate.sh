#!/bin/sh
# Regenerates gateway/src/meshgate_wire from the proto, with the lowest grpcio-tools we support.
set -eu
cd "$(dirname "$0")/../.."
out=gateway/src/meshgate_wire
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
uv run python -m grpc_tools.protoc -I gateway/proto --python_out="$tmp" --pyi_out="$tmp" \
  --grpc_python_out="$tmp" gateway/proto/meshgate/broker/v1/broker.proto
sed -i 's/^from meshgate.broker.v1 import broker_pb2/from meshgate_wire import broker_pb2/' \
  "$tmp/meshgate/broker/v1/broker_pb2_grpc.py"
cp "$tmp"/meshgate/broker/v1/* "$out/"
