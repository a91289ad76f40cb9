package mesh.agents.split

allow contains "agent:teller"

allow contains "agent:cashier"
