package mesh.agents.desk_two

allow contains "orders.look"

allow contains "orders.keyed"

allow contains "orders.pay"
