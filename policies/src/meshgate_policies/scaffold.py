"""The first policy of an app: exactly the tools it holds, and a test for each."""

import json
import re
from collections.abc import Mapping, Sequence

from meshgate_policies.lint import AGENT
from meshgate_policies.names import package_path

_HEADER = """\
# What the app `{app}` may do. Nothing else is allowed.
# A grant is narrowed by its arguments:
#   allow contains "orders.refund" if input.call.args.amount <= 50
# A call that a person must agree to:
#   approve contains "orders.refund" if input.call.args.amount > 50
package {package}
"""
_OUT_OF_REACH = """
# What a dot hides (.env, .git/, .meshgate/), what decides here, and whatever `..` leads to.
_out_of_reach(names) if {
	some name in names
	some part in split(input.call.args[name], "/")
	startswith(part, ".")
	part != "."
}

_out_of_reach(names) if {
	some name in names
	some part in split(input.call.args[name], "/")
	part in {"meshgate.yaml", "policies"}
}
"""
_TEST_HEADER = """\
package {package}

import data.{policy} as policy
import data.meshgate

_call(tool) := {{
	"caller": {{"app": "{app}"}},
	"call": {{"tool": tool, "kind": {kind}, "args": {{}}}},
}}
"""
_KINDS = """
default _kind(_) := "tool"

_kind(tool) := "delegate" if startswith(tool, "agent:")
"""
_MAY = """
test_may_{name} if meshgate.decision.allow with input as _call("{tool}")
"""
_REACHES_NOTHING = """
test_{name}_reaches_nothing_hidden if {{
	every argument in {arguments} {{
		every path in [".env", "a/../../b", "./.git/x", "/a/.meshgate/b", "policies/a", "meshgate.yaml"] {{
			asked := object.union(_call("{tool}"), {{"call": {{"args": {{argument: path}}}}}})
			decision := meshgate.decision with input as asked
			decision.reasons == ["tool_not_granted"]
		}}
	}}
}}
"""
_MAY_NOT = """
test_may_nothing_else if {
	decision := meshgate.decision with input as _call("some.tool_nobody_granted")
	not decision.allow
	decision.reasons == ["tool_not_granted"]
}

test_another_app_may_not_use_this_policy if {
	every tool in policy.allow {
		decision := meshgate.decision with input as _call(tool) with input.caller.app as "nobody-else"
		decision.reasons == ["no_policy_for_caller"]
	}
}
"""


def agent_package(
    app: str, tools: Sequence[str], paths: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, str]:
    """Least-privilege Rego for one app, and its tests.

    Args:
        app: the app's id, such as `refund-desk`.
        tools: canonical tool ids, such as `orders.refund`; the reserved `crewai.` ones too, if held, and
            `agent:billing` for a colleague that it may give tasks to.
        paths: for tools that work on files, their arguments that are paths.

    Returns:
        The text of the policy and of its test; `file_names` says where they go.
    """
    granted = sorted(set(tools))
    package = package_path(app)
    policy = _HEADER.format(app=app, package=package)
    reaching = {tool: json.dumps(list(paths[tool])) for tool in granted if paths and paths.get(tool)}
    policy += "".join(f'\nallow contains "{tool}"{_condition(reaching.get(tool))}\n' for tool in granted)
    policy += _OUT_OF_REACH if reaching else ""
    if not granted:
        policy += "\nallow := set()\n"
    delegates = any(tool.startswith(AGENT) for tool in granted)
    test = _TEST_HEADER.format(
        app=app,
        package=package_path(app, under="mesh.tests"),
        policy=package,
        kind="_kind(tool)" if delegates else '"tool"',
    )
    test += _KINDS if delegates else ""
    test += "".join(_MAY.format(name=name, tool=tool) for tool, name in _test_names(granted))
    test += "".join(
        _REACHES_NOTHING.format(name=name, tool=tool, arguments=reaching[tool])
        for tool, name in _test_names(granted)
        if tool in reaching
    )
    return policy, test + _MAY_NOT


def file_names(app: str) -> tuple[str, str]:
    """Names of the two files of an app; a file that ends in `_test.rego` is never deployed."""
    return f"{app}.rego", f"{app}_test.rego"


def _condition(arguments: str | None) -> str:
    return f" if not _out_of_reach({arguments})" if arguments else ""


def _test_names(tools: Sequence[str]) -> list[tuple[str, str]]:
    """A name per tool; two tools whose names fall together are told apart by a number."""
    seen: dict[str, int] = {}
    named = []
    for tool in tools:
        name = re.sub(r"[^A-Za-z0-9]", "_", tool)
        seen[name] = seen.get(name, 0) + 1
        named.append((tool, name if seen[name] == 1 else f"{name}_{seen[name]}"))
    return named
