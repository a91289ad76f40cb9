package mesh.agents.desk_one

allow contains "orders.look"

allow contains "orders.keyed"

allow contains "orders.pay"
