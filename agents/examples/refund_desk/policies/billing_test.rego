package mesh.tests.billing

import data.meshgate

_decision(tool, args) := decision if {
	decision := meshgate.decision with input as {
		"caller": {"app": "billing"},
		"call": {"tool": tool, "kind": "tool", "args": args},
	}
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

test_may_not_read_what_strangers_write if {
	every tool in ["files.list_tickets", "files.file_read"] {
		_decision(tool, {"file_path": "tickets/T-1001.txt"}).reasons == ["tool_not_granted"]
	}
}

test_may_nothing_else if _decision("some.tool_nobody_granted", {}).reasons == ["tool_not_granted"]
