package mesh.agents.clerk

allow contains "orders.lookup"

allow contains "orders.pay"
