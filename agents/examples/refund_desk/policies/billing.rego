# What the app `billing` may do: look orders up and pay small sums back. Nothing else is allowed.
package mesh.agents.billing

allow contains "orders.lookup_order"

# Small sums go back to the card that paid.
allow contains "orders.refund" if {
	input.call.args.amount > 0
	input.call.args.amount <= 250
	object.get(input.call.args, "card", "original") == "original"
}
