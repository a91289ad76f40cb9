package meshgate_test

import data.meshgate

_ask(app, tool, args) := decision if {
	decision := meshgate.decision with input as {
		"caller": {"app": app},
		"call": {"tool": tool, "args": args},
	}
		with data.mesh.agents as {
			"desk_one": {
				"allow": {"orders.lookup", "orders.refund", "orders.purge"},
				"approve": {"orders.pay"},
				"deny": {"orders.purge", {"tool": "orders.refund", "reason": "closed_today"}},
			},
			"plain": {"allow": {"orders.lookup"}},
		}
}

test_granted_is_allowed if {
	_ask("plain", "orders.lookup", {}) == {"allow": true, "approval": null, "obligations": {}, "reasons": []}
}

test_dash_in_app_finds_its_package if _ask("desk-one", "orders.lookup", {}).allow

test_not_granted_is_denied if {
	d := _ask("plain", "orders.refund", {})
	not d.allow
	d.reasons == ["tool_not_granted"]
}

test_unknown_caller_is_denied if {
	d := _ask("stranger", "orders.lookup", {})
	not d.allow
	d.reasons == ["no_policy_for_caller"]
}

test_deny_wins if {
	d := _ask("desk-one", "orders.purge", {})
	not d.allow
	d.reasons == ["denied_by_rule"]
}

test_deny_gives_its_reason if _ask("desk-one", "orders.refund", {}).reasons == ["closed_today"]

test_approval_is_no_allow if {
	d := _ask("desk-one", "orders.pay", {})
	not d.allow
	d.reasons == ["approval_required"]
	d.approval == {"tool": "orders.pay"}
}

test_role_in_untrusted_grants_nothing if {
	d := meshgate.decision with input as {
		"caller": {"app": "stranger"},
		"call": {"tool": "orders.lookup", "args": {}},
		"untrusted": {"app": "plain", "role": "plain"},
	}
		with data.mesh.agents as {"plain": {"allow": {"orders.lookup"}}}
	not d.allow
}
