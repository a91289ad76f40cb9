package mesh.agents.nightly

allow contains "orders.lookup"

allow contains "orders.pay"

allow contains "nightly.keep" if input.call.effect == "memory"
