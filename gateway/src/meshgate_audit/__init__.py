"""The hash chain of audit records; verifying it needs the standard library only."""
