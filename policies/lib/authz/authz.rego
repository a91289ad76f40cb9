# METADATA
# title: Who may ask this OPA what
# description: |
#   Tokens are known by digest only. The gateway reaches the decision and nothing else; the
#   supervisor also reads health. Everything else, GET /v1/config included, is refused.
package system.authz

default allow := false

_digest := crypto.sha256(input.identity)

_asks_decision if {
	input.method == "POST"
	input.path == ["v1", "data", "meshgate", "decision"]
}

allow if {
	_digest == data.authz.gateway_token_sha256
	_asks_decision
}

allow if {
	_digest == data.authz.supervisor_token_sha256
	_asks_decision
}

allow if {
	_digest == data.authz.supervisor_token_sha256
	input.method == "GET"
	input.path == ["health"]
}
