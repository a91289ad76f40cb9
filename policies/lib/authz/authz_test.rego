package system.authz_test

import data.system.authz

_digests := {
	"gateway_token_sha256": crypto.sha256("gateway-token"),
	"supervisor_token_sha256": crypto.sha256("supervisor-token"),
}

_decision := {
	"identity": "gateway-token",
	"method": "POST",
	"path": ["v1", "data", "meshgate", "decision"],
	"params": {"strict-builtin-errors": ["true"]},
}

_may(request) if authz.allow with input as object.union(_decision, request) with data.authz as _digests

_health := {"identity": "supervisor-token", "method": "GET", "path": ["health"], "params": {}}

test_gateway_asks_for_decisions if _may({})

test_supervisor_asks_for_decisions_and_health if {
	_may({"identity": "supervisor-token"})
	authz.allow with input as _health with data.authz as _digests
}

test_gateway_gets_nothing_else if {
	every request in [
		{"method": "GET"},
		{"path": ["v1", "data"]},
		{"path": ["v1", "data", "meshgate"]},
		{"path": ["v1", "data", "meshgate", "decision", "allow"]},
		{"path": ["v1", "data", "system", "authz"]},
		{"method": "GET", "path": ["v1", "config"]},
		{"method": "GET", "path": ["v1", "policies"]},
		{"method": "PUT", "path": ["v1", "policies", "x"]},
		{"path": ["v1", "query"]},
		{"path": ["v1", "compile"]},
		{"path": [""]},
		{"method": "GET", "path": ["health"]},
	] {
		not _may(request)
	}
}

_compile(query) := {
	"identity": "supervisor-token",
	"method": "POST",
	"path": ["v1", "compile"],
	"params": {},
	"body": {"query": query},
}

_compiles(request) if authz.allow with input as request with data.authz as _digests

test_supervisor_compiles_the_listing if {
	every query in ["data.meshgate.granted", "data.meshgate.refused"] {
		_compiles(_compile(query))
	}
}

test_supervisor_compiles_nothing_else if {
	every query in ["data", "data.meshgate.decision", "data.system.authz.allow", "1 == 1", null] {
		not _compiles(_compile(query))
	}
	not _compiles(object.union(_compile("data.meshgate.granted"), {"params": {"explain": ["full"]}}))
	not _compiles(object.union(_compile("data.meshgate.granted"), {"method": "GET"}))
	not _compiles(object.remove(_compile("data.meshgate.granted"), ["body"]))
}

test_only_the_supervisor_compiles if {
	every identity in ["gateway-token", "another", ""] {
		not _compiles(object.union(_compile("data.meshgate.granted"), {"identity": identity}))
	}
}

test_supervisor_reads_no_config if {
	not _may({"identity": "supervisor-token", "method": "GET", "path": ["v1", "config"]})
}

test_other_tokens_get_nothing if {
	not _may({"identity": "another"})
	not _may({"identity": ""})
	not authz.allow with input as object.remove(_decision, ["identity"]) with data.authz as _digests
}

test_without_digests_nobody_gets_in if {
	not authz.allow with input as _decision with data.authz as {}
}

test_explanations_are_refused if {
	object.keys(_decision.params) == {"strict-builtin-errors"}
	not authz.allow with input as json.patch(
		_decision,
		[{"op": "add", "path": "/params/explain", "value": ["full"]}],
	)
		with data.authz as _digests
}
