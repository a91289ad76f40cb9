"""The command line and the local supervisor: everything that starts other processes."""
