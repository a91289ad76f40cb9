"""The gateway: authenticate, decide, record, execute, record."""
