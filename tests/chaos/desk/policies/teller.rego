package mesh.agents.teller

allow contains "orders.look"

allow contains "orders.keyed"

allow contains "orders.pay"
