"""The first policy of an app: exactly the tools it holds, and a test for each."""

import re
from collections.abc import Sequence

from meshgate_policies.names import package_path

_HEADER = """\
# What the app `{app}` may do. Nothing else is allowed.
# A grant is narrowed by its arguments:
#   allow contains "orders.refund" if input.call.args.amount <= 50
# A call that a person must agree to:
#   approve contains "orders.refund" if input.call.args.amount > 50
package {package}
"""
_TEST_HEADER = """\
package {package}

import data.{policy} as policy
import data.meshgate

_call(tool) := {{
	"caller": {{"app": "{app}"}},
	"call": {{"tool": tool, "kind": "tool", "args": {{}}}},
}}
"""
_MAY = """
test_may_{name} if meshgate.decision.allow with input as _call("{tool}")
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


def agent_package(app: str, tools: Sequence[str]) -> tuple[str, str]:
    """Least-privilege Rego for one app, and its tests.

    Args:
        app: the app's id, such as `refund-desk`.
        tools: canonical tool ids, such as `orders.refund`; the reserved `crewai.` ones too, if held.

    Returns:
        The text of the policy and of its test; `file_names` says where they go.
    """
    granted = sorted(set(tools))
    package = package_path(app)
    policy = _HEADER.format(app=app, package=package)
    policy += "".join(f'\nallow contains "{tool}"\n' for tool in granted)
    if not granted:
        policy += "\nallow := set()\n"
    test = _TEST_HEADER.format(app=app, package=package_path(app, under="mesh.tests"), policy=package)
    test += "".join(_MAY.format(name=name, tool=tool) for tool, name in _test_names(granted))
    return policy, test + _MAY_NOT


def file_names(app: str) -> tuple[str, str]:
    """Names of the two files of an app; a file that ends in `_test.rego` is never deployed."""
    return f"{app}.rego", f"{app}_test.rego"


def _test_names(tools: Sequence[str]) -> list[tuple[str, str]]:
    """A name per tool; two tools whose names fall together are told apart by a number."""
    seen: dict[str, int] = {}
    named = []
    for tool in tools:
        name = re.sub(r"[^A-Za-z0-9]", "_", tool)
        seen[name] = seen.get(name, 0) + 1
        named.append((tool, name if seen[name] == 1 else f"{name}_{seen[name]}"))
    return named
