# What the app `desk` may do. Nothing else is allowed.
package mesh.agents.desk

allow contains "files.list_tickets"

# Tickets, and no other file of the project.
allow contains "files.file_read" if regex.match(`^tickets/[A-Za-z0-9-]+\.txt$`, input.call.args.file_path)

allow contains "orders.lookup_order"

# Small sums go back to the card that paid.
allow contains "orders.refund" if {
	input.call.args.amount > 0
	input.call.args.amount <= 250
	object.get(input.call.args, "card", "original") == "original"
}
