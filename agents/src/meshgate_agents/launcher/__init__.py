"""The launcher: holds an agent app's identity and supervises the child that runs the user's code.

Never imports CrewAI. The child gets no certificate, no token and no channel to the gateway: it
speaks a framed protocol on a private socket that admits this launcher's own descendants only.
"""
