"""What runs inside the agent's process: the standard library and CrewAI only, Python >= 3.10."""
