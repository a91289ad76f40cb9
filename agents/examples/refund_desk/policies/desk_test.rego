package mesh.agents.desk_test

import data.mesh.agents.desk

_args(args) := {"call": {"args": args}}

test_reads_a_ticket if {
	"files.file_read" in desk.allow with input as _args({"file_path": "tickets/t-01.txt"})
}

test_reads_no_other_file if {
	not "files.file_read" in desk.allow with input as _args({"file_path": "secrets.txt"})
}

test_climbs_out_of_no_folder if {
	not "files.file_read" in desk.allow with input as _args({"file_path": "tickets/../secrets.txt"})
}

test_pays_small_refunds if {
	"orders.refund" in desk.allow with input as _args({"amount": 500})
}

test_pays_no_large_refund if {
	not "orders.refund" in desk.allow with input as _args({"amount": 501})
}
