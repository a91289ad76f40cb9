"""Bundles, the engine's process, and the strict reading of its answers."""
