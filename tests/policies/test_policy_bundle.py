"""The bundle: what goes in, what stays out, and that the same gives the same."""

import hashlib
import json
import tarfile

import pytest
from fakes.opa_servers import DESK, GATEWAY_TOKEN, SUPERVISOR_TOKEN, write_policies
from meshgate_policies import bundle, opa, resources
from meshgate_policies.errors import PolicyInvalid


def _build(opa_binary, policies, out, data=None):
    return bundle.build(user_policies=policies, data=data or {}, out_dir=out, opa=opa_binary)


def _files(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def test_bundle_holds_library_packages_and_data(opa_binary, tmp_path):
    """No tests, no tokens, no guard; roots are ours and the project's."""
    policies = write_policies(tmp_path / "policies")
    (policies / "desk_test.rego").write_text("package mesh.tests.desk\n\ntest_x if true\n")
    built = _build(opa_binary, policies, tmp_path / "out", {"regions": ["eu"]})
    files = _files(built.path)
    assert {name.rpartition("/")[2] for name in files} == {
        "decision.rego",
        "desk.rego",
        "data.json",
        ".manifest",
    }
    assert json.loads(files["/.manifest"])["roots"] == ["decision", "mesh", "meshgate"]
    assert json.loads(files["/.manifest"])["revision"] == built.revision
    assert json.loads(files["/data.json"]) == {
        "decision": {
            "kinds": {"delegate": True, "tool": True},
            "obligations": {"narrow": {"delegate": True}},
        },
        "mesh": {"limits": {"refund": 50}, "manifest": {"regions": ["eu"]}},
    }
    assert built.sha256 == hashlib.sha256(built.path.read_bytes()).hexdigest()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"bundle-{built.revision}.tar.gz"]


def test_same_sources_give_the_same_bundle_anywhere(opa_binary, tmp_path):
    """The digest names the policy, not the folder or the hour."""
    first = _build(opa_binary, write_policies(tmp_path / "a"), tmp_path / "out-a")
    second = _build(opa_binary, write_policies(tmp_path / "elsewhere" / "b"), tmp_path / "out-b")
    assert (first.revision, first.sha256) == (second.revision, second.sha256)


def test_every_change_gives_another_revision(opa_binary, tmp_path):
    """Rego, data file and manifest data all count."""
    revisions = {
        _build(opa_binary, write_policies(tmp_path / "a"), tmp_path / "out").revision,
        _build(opa_binary, write_policies(tmp_path / "b", refund=51), tmp_path / "out").revision,
        _build(opa_binary, write_policies(tmp_path / "c", desk=DESK + "\n# x\n"), tmp_path / "out").revision,
        _build(opa_binary, write_policies(tmp_path / "d"), tmp_path / "out", {"x": 1}).revision,
    }
    assert len(revisions) == 4


@pytest.mark.parametrize(
    ("rego", "line"),
    [
        ("package meshgate\n\ndecision := 1\n", 1),
        ("package system.authz\n\nallow := true\n", 1),
        ("package mesh.agents.desk\n\ndefault allow := true\n", 3),
        ('package mesh.agents.desk\n\nallow contains "a.b" if http.send({})\n', 3),
        ("package mesh.agents.desk\n\nallow contains {\n", 3),
    ],
)
def test_bad_policies_are_not_packed(opa_binary, tmp_path, rego, line):
    """What `policy check` would tell stops the build, with file and line."""
    policies = write_policies(tmp_path / "policies", desk=rego)
    with pytest.raises(PolicyInvalid) as caught:
        _build(opa_binary, policies, tmp_path / "out")
    places = {(problem.file, problem.line) for problem in caught.value.problems}
    assert places & {(str(policies / "desk.rego"), line), (str(policies / "desk.rego"), line + 1)}
    assert str(policies / "desk.rego") in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data",
    [
        "not json",
        "[]",
        '{"meshgate": {"decision": {"allow": true}}}',
        '{"system": {"authz": {"allow": true}}}',
        '{"authz": {}}',
        '{"decision": {"kinds": ["shell"]}}',
        '{"mesh": {"agents": {"desk": {"allow": ["orders.purge"]}}}}',
        '{"mesh": {"manifest": {}}}',
        '{"mesh": 1}',
    ],
)
def test_data_reaches_nothing_but_its_own_place(opa_binary, tmp_path, data):
    """A data file cannot answer for a rule, ours or OPA's."""
    policies = write_policies(tmp_path / "policies")
    (policies / "data.json").write_text(data)
    with pytest.raises(PolicyInvalid) as caught:
        _build(opa_binary, policies, tmp_path / "out")
    assert caught.value.problems[0].file == str(policies / "data.json")


def test_data_files_are_placed_by_their_folder_and_merged(opa_binary, tmp_path):
    """As OPA itself would load them; two that disagree are refused."""
    policies = write_policies(tmp_path / "policies")
    nested = policies / "mesh" / "regions"
    nested.mkdir(parents=True)
    (nested / "data.json").write_text('{"allowed": ["eu"]}')
    assert bundle.user_data(policies) == {"limits": {"refund": 50}, "regions": {"allowed": ["eu"]}}
    limits = policies / "mesh" / "limits"
    limits.mkdir()
    (limits / "data.json").write_text('{"refund": 9999}')
    with pytest.raises(PolicyInvalid, match="refund"):
        bundle.user_data(policies)


def test_output_inside_the_policies_is_refused(opa_binary, tmp_path):
    """A bundle that packs its own build folder would hold the library twice."""
    policies = write_policies(tmp_path / "policies")
    with pytest.raises(ValueError, match="inside"):
        _build(opa_binary, policies, policies / "out")


def test_missing_folder_names_the_next_command(opa_binary, tmp_path):
    """No policies is no reason to start without."""
    with pytest.raises(PolicyInvalid, match="meshgate scan"):
        _build(opa_binary, tmp_path / "none", tmp_path / "out")


def test_guard_holds_digests_and_no_token(tmp_path):
    """What is written for the process cannot be used as a token."""
    folder = opa.write_authz(
        tmp_path / "authz", gateway_token=GATEWAY_TOKEN, supervisor_token=SUPERVISOR_TOKEN
    )
    text = "".join(path.read_text() for path in folder.iterdir())
    assert GATEWAY_TOKEN not in text
    assert SUPERVISOR_TOKEN not in text
    assert hashlib.sha256(GATEWAY_TOKEN.encode()).hexdigest() in text
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("gateway", "supervisor"), [("", "s"), ("g", ""), ("same", "same")])
def test_guard_needs_two_different_tokens(gateway, supervisor):
    """An empty or shared token would open what it should close."""
    with pytest.raises(ValueError, match="token"):
        opa.authz_files(gateway_token=gateway, supervisor_token=supervisor)


def test_server_inherits_nothing_and_listens_on_its_socket_only(tmp_path):
    """No OPA_* variable can change a flag; tokens are demanded."""
    start = opa.OpaProcess(
        opa=("/x/opa",),
        socket_path=tmp_path / "o.sock",
        bundle=tmp_path / "b.tar.gz",
        authz=tmp_path / "authz",
    )
    argv = start.argv()
    assert argv[:3] == ["/x/opa", "run", "--server"]
    assert {"--authentication=token", "--authorization=basic", "--skip-version-check"} <= set(argv)
    assert argv[argv.index("--addr") + 1] == f"unix://{tmp_path / 'o.sock'}"
    assert argv.count("--addr") == 1
    assert not {"--watch", "-w", "--skip-verify"} & set(argv)
    assert start.env() == {}


def test_resources_lie_in_the_checkout():
    """An editable install reads the checkout's own files."""
    assert (resources.library() / "decision" / "decision.rego").is_file()
    assert resources.input_schema().is_file()
    assert resources.capabilities().is_file()
