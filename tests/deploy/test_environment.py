"""Who gets which variable."""

import pytest
from meshgate_deploy.environment import WITHHELD, Environment, read_dotenv
from meshgate_deploy.manifest import Manifest


@pytest.fixture
def manifest() -> Manifest:
    """A host with a secret, a crew that names one variable."""
    return Manifest.model_validate(
        {
            "apiVersion": "meshgate/v1",
            "mesh": "m",
            "trustDomain": "m.example",
            "crews": {"desk": {"crew": "a.b:c", "secrets": ["MODEL_KEY"]}},
            "toolhosts": {"orders": {"tools": ["a.b:c"], "secrets": ["PAYMENT_KEY"]}},
        }
    )


def _environment(folder, **environ):
    (folder / ".env").write_text("MODEL_KEY='from file'\nexport PAYMENT_KEY=p4y # note\nOTHER=x\n# A=b\n")
    return Environment(project=folder, environ={"PATH": "/bin", "STRAY": "s", "LC_ALL": "C", **environ})


def test_an_agent_gets_its_own_and_sees_hosts_secrets_withheld(tmp_path, manifest):
    """Nothing of the shell or of `.env` that is not named; the host's secret only as a mark."""
    env = _environment(tmp_path).for_agent(manifest, "desk", {"TERM": "xterm", "LD_PRELOAD": "x.so"})
    assert env == {
        "PATH": "/bin", "LC_ALL": "C", "PYTHON_DOTENV_DISABLED": "1",
        "MODEL_KEY": "from file", "PAYMENT_KEY": WITHHELD, "TERM": "xterm",
    }  # fmt: skip


def test_a_run_finds_programs_where_its_asker_does(tmp_path, manifest):
    """The shell that asks says where programs lie, not the one that the mesh was started in."""
    asker = {
        "PATH": "/env/bin",
        "UV_NO_SYNC": "1",
        "PYTHONPATH": "src",
        "HOME": "/elsewhere",
        "MODEL_KEY": "x",
    }
    environment = _environment(tmp_path, UV_NO_SYNC="0", HOME="/home")
    env = environment.for_agent(manifest, "desk", asker)
    assert (env["PATH"], env["UV_NO_SYNC"], env["PYTHONPATH"]) == ("/env/bin", "1", "src")
    assert (env["HOME"], env["MODEL_KEY"]) == ("/home", "from file")
    assert "PYTHONPATH" not in environment.for_host(manifest, "orders")


def test_a_host_gets_its_secret_and_no_other(tmp_path, manifest):
    """The model's key stays away from the tool host."""
    env = _environment(tmp_path).for_host(manifest, "orders")
    assert env["PAYMENT_KEY"] == "p4y"
    assert not {"MODEL_KEY", "STRAY", "OTHER"} & env.keys()


def test_the_shell_wins_over_the_file(tmp_path, manifest):
    """As with every tool that reads `.env`."""
    assert _environment(tmp_path, PAYMENT_KEY="shell").for_host(manifest, "orders")["PAYMENT_KEY"] == "shell"


def test_what_is_named_but_set_nowhere_is_told(tmp_path, manifest):
    """A missing variable is known before a program fails over it."""
    environment = Environment(project=tmp_path, environ={"MODEL_KEY": "k"})
    assert environment.missing(manifest) == [("orders", "PAYMENT_KEY")]


def test_no_file_is_an_empty_one(tmp_path):
    """`.env` is optional."""
    assert read_dotenv(tmp_path / ".env") == {}


def test_gateway_and_sidecars_alone_log_in_at_the_database(tmp_path, manifest):
    """From `.env` or the shell, and only where the store is on a server."""
    environment = _environment(tmp_path, PGPASSWORD="s3cret")
    served = manifest.model_copy(update={"store": "postgresql://m@localhost/d"})
    shared = environment.for_sidecar(served)
    assert (shared["PGUSER"], shared["PGPASSWORD"]) == ("m", "s3cret")
    own = _environment(tmp_path, PGPASSWORD="s3cret", PGSSLKEY="k", MESHGATE_DAPR_PGUSER="d")
    assert own.for_sidecar(served)["PGUSER"] == "d"
    assert {"PGPASSWORD", "PGSSLKEY"}.isdisjoint(own.for_sidecar(served))
    assert environment.for_sidecar(manifest) == {}
    assert environment.for_gateway(served)["PGPASSWORD"] == "s3cret"
    assert "PGPASSWORD" not in environment.for_gateway(manifest)
    for env in (
        environment.base(),
        environment.for_host(served, "orders"),
        environment.for_agent(served, "desk", {}),
    ):
        assert "PGPASSWORD" not in env
