package mesh.tests.triage

import data.meshgate

_decision(tool, args) := decision if {
	decision := meshgate.decision with input as {
		"caller": {"app": "triage"},
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

# Whoever reads what strangers write does not hold the money.
test_may_not_pay if {
	every tool in ["orders.lookup_order", "orders.refund", "agent:billing"] {
		_decision(tool, {"order_id": "O-501", "amount": 1}).reasons == ["tool_not_granted"]
	}
}
