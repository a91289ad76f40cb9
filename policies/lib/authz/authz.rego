# METADATA
# title: Who may ask this OPA what
# description: |
#   Tokens are known by digest only. The gateway reaches the decision and nothing else; the
#   supervisor also reads health, and compiles the two questions of the listing. Everything else, GET /v1/config included, is refused, and so is
#   a query that asks for more than the answer (explain=full shows every rule).
package system.authz

default allow := false

allow if {
	_token in {data.authz.gateway_token_sha256, data.authz.supervisor_token_sha256}
	input.method == "POST"
	input.path == ["v1", "data", "meshgate", "decision"]
	object.keys(input.params) == {"strict-builtin-errors"}
}

allow if {
	_token == data.authz.supervisor_token_sha256
	input.method == "GET"
	input.path == ["health"]
	count(input.params) == 0
}

allow if {
	_token == data.authz.supervisor_token_sha256
	input.method == "POST"
	input.path == ["v1", "compile"]
	count(input.params) == 0
	input.body.query in {"data.meshgate.granted", "data.meshgate.refused"}
}

_token := crypto.sha256(input.identity)
