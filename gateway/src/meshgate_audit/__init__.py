"""The record chain and its offline verification; needs nothing of the gateway."""
