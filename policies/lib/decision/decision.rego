# METADATA
# title: The decision
# description: |
#   One total object for every call. Users write `package mesh.agents.<app>` with the sets
#   allow, approve and deny of tool ids; this file composes them. Deny wins, nothing is granted
#   by default, and which package is asked follows from the caller's certificate alone.
package meshgate

# METADATA
# title: May this caller make this call?
# description: The only path the gateway asks.
# entrypoint: true
decision := {
	"allow": _allow,
	"approval": _approval,
	"obligations": _obligations,
	"reasons": sort(_reasons),
}

# The app is the last segment of the attested SPIFFE ID; Rego names have no dash.
_app := replace(input.caller.app, "-", "_")

_tool := input.call.tool

_known if data.mesh.agents[_app]

_granted if _tool in data.mesh.agents[_app].allow

_needs_approval if _tool in data.mesh.agents[_app].approve

default _allow := false

_allow if count(_reasons) == 0

default _approval := null

_approval := {"tool": _tool} if {
	_needs_approval
	count(_denials) == 0
}

default _obligations := {}

_obligations := data.mesh.agents[_app].obligations[_tool]

_reasons contains "no_policy_for_caller" if not _known

_reasons contains "tool_not_granted" if {
	_known
	not _granted
	not _needs_approval
}

_reasons contains "approval_required" if _needs_approval

_reasons contains reason if some reason in _denials

_denials contains "denied_by_rule" if _tool in data.mesh.agents[_app].deny

_denials contains rule.reason if {
	some rule in data.mesh.agents[_app].deny
	is_object(rule)
	rule.tool == _tool
}
