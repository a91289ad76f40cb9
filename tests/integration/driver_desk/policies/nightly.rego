package mesh.agents.nightly

allow contains "orders.lookup"

allow contains "orders.pay"
