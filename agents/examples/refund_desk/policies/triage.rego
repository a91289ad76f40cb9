# What the app `triage` may do: read tickets. Nothing else is allowed.
package mesh.agents.triage

allow contains "files.list_tickets"

# Tickets, and no other file of the project.
allow contains "files.file_read" if regex.match(`^tickets/[A-Za-z0-9-]+\.txt$`, input.call.args.file_path)
