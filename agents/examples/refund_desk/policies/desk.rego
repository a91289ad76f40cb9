# What the crew may do: give its two agents their tasks. It holds no tool.
package mesh.agents.desk

allow contains "agent:triage"

allow contains "agent:billing"
