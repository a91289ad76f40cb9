"""The light process that holds an agent's identity and watches over its program."""
