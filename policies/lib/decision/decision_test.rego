package meshgate_test

import data.meshgate

_agents := {
	"desk_one": {
		"allow": {"orders.lookup", "orders.refund", "orders.purge", "orders.both", "orders.narrow"},
		"approve": {"orders.pay", "orders.both", "orders.drop"},
		"deny": {"orders.purge", "orders.drop", {"tool": "orders.refund", "reason": "closed_today"}},
		"obligations": {"orders.narrow": {"narrow": {}}},
	},
	"plain": {"allow": {"orders.lookup"}},
	"only_deny": {"deny": {"orders.lookup"}},
}

_input(app, tool) := {
	"caller": {"app": app},
	"call": {"tool": tool, "kind": "tool", "args": {}},
}

_ask(app, tool) := decision if {
	decision := meshgate.decision with input as _input(app, tool) with data.mesh.agents as _agents
}

_ask_with(policy) := decision if {
	decision := meshgate.decision with input as _input("desk", "orders.lookup") with data.mesh.agents as {"desk": policy}
}

_nothing(reasons) := {"allow": false, "approval": null, "obligations": {}, "reasons": reasons}

test_granted_is_allowed if {
	_ask("plain", "orders.lookup") == {"allow": true, "approval": null, "obligations": {}, "reasons": []}
}

test_dash_in_app_finds_its_package if _ask("desk-one", "orders.lookup").allow

test_not_granted_is_denied if _ask("plain", "orders.refund") == _nothing(["tool_not_granted"])

test_unknown_caller_is_denied if _ask("stranger", "orders.lookup") == _nothing(["no_policy_for_caller"])

test_deny_only_is_no_grant if {
	_ask("only-deny", "orders.refund") == _nothing(["tool_not_granted"])
}

test_approve_only_is_a_policy if {
	d := _ask_with({"approve": {"orders.lookup"}})
	d.reasons == ["approval_required"]
}

test_deny_wins if _ask("desk-one", "orders.purge") == _nothing(["denied_by_rule"])

test_deny_gives_its_reason if _ask("desk-one", "orders.refund") == _nothing(["closed_today"])

test_approval_is_no_allow if {
	_ask("desk-one", "orders.pay") == {
		"allow": false,
		"approval": {"tool": "orders.pay"},
		"obligations": {},
		"reasons": ["approval_required"],
	}
}

test_approve_beats_allow if {
	d := _ask("desk-one", "orders.both")
	not d.allow
	d.approval == {"tool": "orders.both"}
}

test_denied_call_asks_nobody if {
	_ask("desk-one", "orders.drop") == _nothing(["approval_required", "denied_by_rule"])
}

test_obligation_of_another_kind_of_call_denies if {
	d := _ask("desk-one", "orders.narrow")
	d.reasons == ["obligation_unknown"]
	not d.allow
}

test_empty_input_is_denied if {
	d := meshgate.decision with input as {} with data.mesh.agents as _agents
	d == _nothing(["kind_unknown", "no_policy_for_caller"])
}

test_no_policies_at_all_is_denied if {
	d := meshgate.decision with input as _input("plain", "orders.lookup") with data.mesh as {}
	d == _nothing(["no_policy_for_caller"])
}

test_caller_that_is_no_text_is_denied if {
	d := meshgate.decision with input as _input(["plain"], "orders.lookup") with data.mesh.agents as _agents
	d == _nothing(["no_policy_for_caller"])
}

test_tool_that_is_no_text_is_denied if {
	d := meshgate.decision with input as _input("plain", {"a"}) with data.mesh.agents as _agents
	d == _nothing(["tool_not_granted"])
}

test_unknown_kind_is_denied if {
	called := json.patch(
		_input("plain", "orders.lookup"),
		[{"op": "replace", "path": "/call/kind", "value": "shell"}],
	)
	d := meshgate.decision with input as called with data.mesh.agents as _agents
	d == _nothing(["kind_unknown"])
}

test_delegation_is_a_known_kind if {
	called := json.patch(
		_input("plain", "orders.lookup"),
		[{"op": "replace", "path": "/call/kind", "value": "delegate"}],
	)
	d := meshgate.decision with input as called with data.mesh.agents as _agents
	d.allow
}

_delegating(policy) := decision if {
	called := {"caller": {"app": "desk"}, "call": {"tool": "agent:billing", "kind": "delegate", "args": {}}}
	decision := meshgate.decision with input as called with data.mesh.agents as {"desk": policy}
}

_delegation_refused(policy) if {
	called := {"caller": {"app": "desk"}, "call": {"tool": "agent:billing", "kind": "delegate", "args": {}}}
	meshgate.refused with input as called with data.mesh.agents as {"desk": policy}
}

test_delegation_needs_a_grant if {
	_delegating({"allow": {"orders.lookup"}}) == _nothing(["tool_not_granted"])
	_delegating({"allow": {"agent:refunds"}}) == _nothing(["tool_not_granted"])
	_delegating({"allow": {"agent:billing"}}).allow
}

test_agent_s_id_in_deny_concerns_it_alone if {
	_delegating({"allow": {"agent:billing"}, "deny": {"agent:billing"}}) == _nothing(["denied_by_rule"])
	_delegating({"allow": {"agent:billing"}, "deny": {"agent:refunds", {"tool": "agent:refunds"}}}).allow
	_ask_with({"allow": {"orders.lookup"}, "deny": {"agent:billing"}}).allow
}

test_agent_s_id_may_need_approval if {
	d := _delegating({"approve": {"agent:billing"}})
	d.reasons == ["approval_required"]
	d.approval == {"tool": "agent:billing"}
}

test_narrow_of_a_delegation_is_kept if {
	policy := {"allow": {"agent:billing"}, "obligations": {"agent:billing": {"narrow": {"tools": {}}}}}
	_delegating(policy).obligations == {"narrow": {"tools": {}}}
	not _delegation_refused(policy)
	_delegation_refused({"allow": {"agent:billing"}, "obligations": {"agent:billing": {"log": {}}}})
}

test_role_in_untrusted_grants_nothing if {
	called := object.union(
		_input("stranger", "orders.lookup"),
		{"untrusted": {"app": "plain", "role": "plain", "caller": {"app": "plain"}}},
	)
	d := meshgate.decision with input as called with data.mesh.agents as _agents
	d == _nothing(["no_policy_for_caller"])
}

test_deny_by_reason_denies_everything if {
	d := _ask_with({"allow": {"orders.lookup"}, "deny": {"closed_today"}})
	d == _nothing(["closed_today"])
}

test_deny_of_another_tool_spares_this_one if {
	d := _ask_with({
		"allow": {"orders.lookup"},
		"deny": {"orders.refund", {"tool": "orders.purge", "reason": "closed_today"}},
	})
	d.allow
}

test_deny_by_free_text_denies_without_it if {
	d := _ask_with({"allow": {"orders.lookup"}, "deny": {"Closed. Ask Bob!"}})
	d == _nothing(["denied_by_rule"])
}

test_deny_by_pattern_denies if {
	every pattern in ["orders.*", {"tool": "orders.*"}, {"tool": {"orders.lookup"}}, {"reason": 7}, {}] {
		d := _ask_with({"allow": {"orders.lookup"}, "deny": {pattern}})
		d == _nothing(["denied_by_rule"])
	}
}

test_deny_object_without_tool_denies_everything if {
	d := _ask_with({"allow": {"orders.lookup"}, "deny": {{"reason": "closed_today"}}})
	d == _nothing(["closed_today"])
}

test_sets_of_another_type_are_invalid if {
	every policy in [
		{"allow": true},
		{"allow": {"orders.lookup": true}},
		{"allow": ["orders.lookup"]},
		{"allow": {"orders.lookup"}, "deny": true},
		{"allow": {"orders.lookup"}, "deny": false},
		{"allow": {"orders.lookup"}, "deny": {7}},
		{"allow": {"orders.lookup"}, "approve": {}},
		{"allow": {"orders.lookup"}, "approve": {"orders.*"}},
	] {
		d := _ask_with(policy)
		not d.allow
		"policy_invalid" in d.reasons
	}
}

# The two questions of the listing, as the decision sees them: what it allows is granted and not refused.
_granted(policy) if meshgate.granted with input as _input("desk", "orders.lookup") with data.mesh.agents as {"desk": policy}

_refused(policy) if meshgate.refused with input as _input("desk", "orders.lookup") with data.mesh.agents as {"desk": policy}

test_granted_by_allow_alone if {
	_granted({"allow": {"orders.lookup"}})
	not _granted({"allow": {"orders.refund"}})
	not _granted({"approve": {"orders.lookup"}})
	not _granted({})
}

test_refused_by_deny_approve_and_obligations if {
	every policy in [
		{"deny": {"orders.lookup"}},
		{"deny": {"closed_today"}},
		{"deny": {{"tool": "orders.lookup", "reason": "closed_today"}}},
		{"approve": {"orders.lookup"}},
		{"obligations": {"orders.lookup": {"narrow": {}}}},
	] {
		_refused(policy)
	}
}

test_not_refused_without_reason if {
	every policy in [
		{},
		{"allow": {"orders.lookup"}},
		{"deny": {"orders.refund"}, "approve": {"orders.refund"}},
		{"obligations": {"orders.lookup": {}, "orders.refund": {"narrow": {}}}},
	] {
		not _refused(policy)
	}
}

test_unknown_kind_is_refused if {
	called := json.patch(_input("plain", "orders.lookup"), [{"op": "remove", "path": "/call/kind"}])
	meshgate.refused with input as called with data.mesh.agents as _agents
}

# A task for an agent is named as a tool is, in each of the sets.
_delegate(policy) := decision if {
	asked := {
		"caller": {"app": "desk"},
		"call": {"tool": "agent:billing-clerk", "kind": "delegate", "args": {}},
	}
	decision := meshgate.decision with input as asked with data.mesh.agents as {"desk": policy}
}

test_delegation_is_granted_by_its_name if {
	_delegate({"allow": {"agent:billing-clerk"}}).allow
	_delegate({"allow": {"agent:billing", "billing-clerk.task"}}) == _nothing(["tool_not_granted"])
}

test_delegation_is_denied_by_its_name if {
	allowed := {"agent:billing-clerk"}
	_delegate({"allow": allowed, "deny": {"agent:billing-clerk"}}) == _nothing(["denied_by_rule"])
	_delegate({"allow": allowed, "deny": {{"tool": "agent:billing-clerk", "reason": "no"}}}) == _nothing(["no"])
	_delegate({"allow": allowed, "deny": {"agent:triage", {"tool": "agent:triage", "reason": "no"}}}).allow
}

test_delegation_that_needs_approval if {
	_delegate({"allow": {"agent:billing-clerk"}, "approve": {"agent:billing-clerk"}}).reasons == ["approval_required"]
	_delegate({"allow": {"agent:billing-clerk"}, "approve": {"agent:*"}}).reasons == ["policy_invalid"]
}
