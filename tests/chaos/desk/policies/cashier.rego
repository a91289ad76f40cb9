package mesh.agents.cashier

allow contains "orders.look"

allow contains "orders.keyed"

allow contains "orders.pay"
