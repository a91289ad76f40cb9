package mesh.agents.twice

allow contains "orders.lookup"

allow contains "orders.pay"
