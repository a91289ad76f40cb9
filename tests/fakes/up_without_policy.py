"""`meshgate up`, but the access policy of one app (the argument) is lost on the way to its sidecar."""

import sys

from meshgate_deploy import cli, generate


def main() -> None:
    lost, written = sys.argv.pop(1), generate.dapr_resources

    def write_all_but_one(manifest: generate.Manifest, state: generate.State) -> None:
        written(manifest, state)
        (state.generated / "dapr" / "resources" / f"policy-{lost}.yaml").unlink()

    generate.dapr_resources = write_all_but_one
    cli.main()


if __name__ == "__main__":
    main()
