package mesh.agents.desk_mesh

allow contains "orders.look"

allow contains "orders.keyed"

allow contains "orders.pay"
