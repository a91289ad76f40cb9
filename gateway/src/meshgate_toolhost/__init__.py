"""Runs real tools behind the gateway: an app of its own, with the tools' credentials and nothing else."""
