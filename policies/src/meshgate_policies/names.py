"""How an app's id becomes a Rego package name."""


def package_name(app: str) -> str:
    """Rego names have no dash: `refund-desk` is `mesh.agents.refund_desk`."""
    return app.replace("-", "_")
