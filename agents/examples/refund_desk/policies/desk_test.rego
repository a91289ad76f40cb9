package mesh.tests.desk

import data.meshgate

_decision(tool, kind) := decision if {
	decision := meshgate.decision with input as {
		"caller": {"app": "desk"},
		"call": {"tool": tool, "kind": kind, "args": {}},
	}
}

test_may_give_its_agents_tasks if {
	_decision("agent:triage", "delegate").allow
	_decision("agent:billing", "delegate").allow
}

# What its agents may do, it may not.
test_holds_no_tool if {
	every tool in ["files.list_tickets", "files.file_read", "orders.lookup_order", "orders.refund"] {
		_decision(tool, "tool").reasons == ["tool_not_granted"]
	}
}

test_may_nothing_else if _decision("some.tool_nobody_granted", "tool").reasons == ["tool_not_granted"]
