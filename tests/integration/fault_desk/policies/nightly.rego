package mesh.agents.nightly

allow contains "orders.lookup"

allow contains "orders.keyed"

allow contains "orders.pay"

allow contains "orders.book"

allow contains "orders.broken"

allow contains "orders.big"

allow contains "orders.slow"

allow contains "orders.stuck"
