"""What of ours runs inside an agent's process: standard library and CrewAI only, Python >= 3.10.

Loaded by file location under the private name `_meshgate_child` (see `sitecustomize/`), because
the interpreter may belong to an environment where meshgate is not installed. It holds no
credential, and it is no security boundary: the boundary is that this process has no way to a tool.
"""
