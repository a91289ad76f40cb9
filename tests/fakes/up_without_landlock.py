"""`meshgate up` on a kernel that has no Landlock."""

from meshgate_agents.child import confine
from meshgate_deploy import cli


def main() -> None:
    confine.abi = lambda: 0
    cli.main()


if __name__ == "__main__":
    main()
