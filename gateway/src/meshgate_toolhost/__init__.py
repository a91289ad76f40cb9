"""Runs real tools behind the gateway, where no agent can reach them."""
