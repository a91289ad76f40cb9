package mesh.tests.desk

import data.meshgate

_decision(tool, args) := decision if {
	decision := meshgate.decision with input as {
		"caller": {"app": "desk"},
		"call": {"tool": tool, "kind": "tool", "args": args},
	}
}

test_may_list_tickets if _decision("files.list_tickets", {}).allow

test_may_read_a_ticket if _decision("files.file_read", {"file_path": "tickets/T-1001.txt"}).allow

test_may_read_nothing_else if {
	every path in ["secrets.txt", "/etc/passwd", "tickets/../secrets.txt", "tickets/a/b.txt", null] {
		_decision("files.file_read", {"file_path": path}).reasons == ["tool_not_granted"]
	}
	_decision("files.file_read", {}).reasons == ["tool_not_granted"]
}

test_may_look_an_order_up if _decision("orders.lookup_order", {"order_id": "O-501"}).allow

test_may_refund_small_sums if {
	_decision("orders.refund", {"order_id": "O-501", "amount": 250}).allow
	_decision("orders.refund", {"order_id": "O-501", "amount": 12.5, "card": "original"}).allow
}

test_may_not_refund_large_sums if {
	every amount in [250.01, 9999, 0, -5] {
		_decision("orders.refund", {"order_id": "O-501", "amount": amount}).reasons == ["tool_not_granted"]
	}
}

# OPA compares values of different types without complaint; none may slip under the limit.
test_may_not_refund_what_is_no_number if {
	every amount in ["10", null, true, [10]] {
		not _decision("orders.refund", {"order_id": "O-501", "amount": amount}).allow
	}
}

test_may_not_refund_to_another_card if {
	args := {"order_id": "O-501", "amount": 10, "card": "4000-0000-0000-9995"}
	_decision("orders.refund", args).reasons == ["tool_not_granted"]
}

test_may_nothing_else if _decision("some.tool_nobody_granted", {}).reasons == ["tool_not_granted"]
