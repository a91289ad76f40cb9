"""The worker of one app: receives the app's runs from Dapr and plays them, many at once.

Holds the app's SVID and its sidecar's token; imports neither CrewAI nor the user's code.
"""
