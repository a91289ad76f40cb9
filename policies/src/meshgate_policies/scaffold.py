"""The first policy of an app: exactly the tools it holds, and a test for each."""

from collections.abc import Sequence

from meshgate_policies.names import package_name


def agent_package(app: str, tools: Sequence[str]) -> tuple[str, str]:
    """Least-privilege Rego for one app, and its tests.

    Args:
        app: the app's id, such as `refund-desk`.
        tools: canonical tool ids, such as `orders.refund`.

    Returns:
        The text of `<app>.rego` and of `<app>_test.rego`.
    """
    package = f"mesh.agents.{package_name(app)}"
    grants = "\n\n".join(f'allow contains "{tool}"' for tool in sorted(tools))
    policy = f"""# What the app `{app}` may do. Nothing else is allowed.
# Narrow a grant by its arguments, for example:
#   allow contains "orders.refund" if input.call.args.amount <= 50
package {package}

{grants}
"""
    cases = "\n\n".join(_case(package_name(app), tool) for tool in sorted(tools))
    test = f"""package {package}_test

import data.{package}

{cases}

test_nothing_else if {{
	not "a.tool_nobody_granted" in {package_name(app)}.allow
}}
"""
    return policy, test


def _case(package: str, tool: str) -> str:
    name = tool.replace(".", "_").replace("-", "_")
    asked = f'with input as {{"call": {{"tool": "{tool}", "args": {{}}}}}}'
    return f'test_may_{name} if {{\n\t"{tool}" in {package}.allow {asked}\n}}'
