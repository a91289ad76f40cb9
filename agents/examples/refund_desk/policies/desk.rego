# What the crew `desk` may do. Nothing else is allowed.
package mesh.agents.desk

allow contains "orders.list_tickets"

allow contains "orders.lookup_order"

# Tickets, and no other file of the host.
allow contains "files.file_read" if {
	startswith(input.call.args.file_path, "tickets/")
	not contains(input.call.args.file_path, "..")
}

# A clerk pays small refunds; nobody here pays large ones.
allow contains "orders.refund" if input.call.args.amount <= 500
