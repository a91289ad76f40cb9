# METADATA
# title: The decision
# description: |
#   One total object for every call. Users write `package mesh.agents.<app>` with the sets
#   allow, approve and deny; this file composes them. Deny wins, nothing is granted by default,
#   and which package is asked follows from the caller's certificate alone. The listing of tools asks
#   the same rules with the arguments unknown, so they look entries up in the sets themselves: through
#   a rule in between, OPA would know no entry as long as one of them hangs on an argument.
package meshgate

# METADATA
# title: May this caller make this call?
# description: The only path the gateway asks.
# entrypoint: true
decision := {
	"allow": count(_reasons) == 0,
	"approval": _approval,
	"obligations": _obligations,
	"reasons": sort(_reasons),
}

# METADATA
# title: Does a rule grant this call?
# description: Necessary for an allow. Undefined while the arguments are unknown means never.
granted if data.mesh.agents[_app].allow[_tool]

# METADATA
# title: Is this call refused, whatever grants it?
# description: Excludes an allow. True while the arguments are unknown means always.
refused if not _kind_known

refused if _needs_approval

refused if {
	some entry in data.mesh.agents[_app].deny
	_refusal(entry)
}

refused if {
	some name, _ in data.mesh.agents[_app].obligations[_tool]
	not data.decision.obligations[name]
}

# The app is the last segment of the attested SPIFFE ID; Rego names have no dash.
_app := replace(input.caller.app, "-", "_") if is_string(input.caller.app)

_tool := input.call.tool if is_string(input.call.tool)

# The three sets and not the whole package: its helpers are its own affair.
_allow := data.mesh.agents[_app].allow

_approve := data.mesh.agents[_app].approve

_deny := data.mesh.agents[_app].deny

# Asking a person makes sense only when nothing else stands in the way.
default _approval := null

_approval := {"tool": _tool} if _reasons == {"approval_required"}

default _obligations := {}

_obligations := data.mesh.agents[_app].obligations[_tool]

_reasons contains "no_policy_for_caller" if not _known

_reasons contains "tool_not_granted" if {
	_known
	not granted
	not _needs_approval
}

_reasons contains "approval_required" if _needs_approval

# How a new kind of call is decided is for this library to say before anyone may make one.
_reasons contains "kind_unknown" if not _kind_known

_reasons contains "policy_invalid" if _malformed

_reasons contains reason if {
	some entry in data.mesh.agents[_app].deny
	reason := _refusal(entry)
}

# A rule of its own, because `not` of an expression with an undefined part is not true.
_needs_approval if data.mesh.agents[_app].approve[_tool]

_kind_known if data.decision.kinds[input.call.kind]

_known if _allow

_known if _approve

_known if _deny

# `deny if ...` gives true and not a set. What was meant is a guess, and a guess is a denial.
_malformed if {
	value := _allow
	not is_set(value)
}

_malformed if {
	value := _approve
	not is_set(value)
}

_malformed if {
	value := _deny
	not is_set(value)
}

# A pattern in approve would match nothing and leave the call to allow.
_malformed if {
	some entry in _approve
	not _is_tool_id(entry)
}

# What an entry of deny says to this call; undefined where it concerns another tool.
_refusal(entry) := "denied_by_rule" if entry == _tool

# A reason alone denies whatever is asked.
_refusal(entry) := _reason_id(entry) if {
	is_string(entry)
	not _is_tool_id(entry)
}

_refusal(entry) := _reason_id(object.get(entry, "reason", "")) if {
	is_object(entry)
	_concerns_call(object.get(entry, "tool", ""))
}

_refusal(entry) := "policy_invalid" if {
	not is_string(entry)
	not is_object(entry)
}

_concerns_call(tool) if tool == _tool

# What is no tool id names no other tool, so it does not spare this one.
_concerns_call(tool) if not _is_tool_id(tool)

_is_tool_id(text) if {
	is_string(text)
	regex.match(`^([a-z0-9][a-z0-9-]*\.[A-Za-z0-9_][A-Za-z0-9_.-]*|agent:[a-z0-9][a-z0-9-]*)$`, text)
}

# A model sees reasons, so free text is never one.
default _reason_id(_) := "denied_by_rule"

_reason_id(text) := text if {
	is_string(text)
	regex.match(`^[a-z][a-z0-9_]{0,63}$`, text)
}
