"""The stock crewai_tools classes, each through a real delivery against the fake gateway."""

import http.server
import threading

import pytest


@pytest.fixture
def files(project, monkeypatch):
    """A host's working folder."""
    folder = project.folder / "data"
    folder.mkdir()
    (folder / "ticket.txt").write_text("line one\nline two\n")
    (project.folder / "secret.txt").write_text("secret")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def site():
    """A site on a loopback port."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"<html><body><h1>Refund rules</h1><p>Up to 50.</p></body></html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/rules"
    server.shutdown()
    server.server_close()


def stock(project, name, **config):
    """An entry as a manifest has it."""
    return project.load({"class": f"crewai_tools:{name}", "config": config}, host="files")


def text(call):
    """The text of a finished call."""
    assert call.state == "done", call.outcome
    return call.outcome.data.decode()


def test_file_read(project, files, start):
    """Reads in the host's folder; a path out of it is the tool's own refusal."""
    host = start(stock(project, "FileReadTool", file_path=None))
    assert text(host.call("files.file_read", {"file_path": "ticket.txt"})) == "line one\nline two\n"
    arguments = {"file_path": "ticket.txt", "start_line": 2, "line_count": None}
    assert text(host.call("files.file_read", arguments)) == "line two\n"
    (files / "way-out").symlink_to(project.folder / "secret.txt")
    for path in ("../secret.txt", str(project.folder / "secret.txt"), "way-out"):
        assert "Invalid file path" in text(host.call("files.file_read", {"file_path": path}))
    assert "not found" in text(host.call("files.file_read", {"file_path": "nothing.txt"}))


def test_file_writer(project, files, start):
    """Writes in the host's folder and nowhere else."""
    host = start(stock(project, "FileWriterTool"))
    assert "successfully" in text(host.call("files.file_writer", {"filename": "a.txt", "content": "ü"}))
    assert (files / "a.txt").read_text() == "ü"
    again = {"filename": "a.txt", "content": "other"}
    assert "already exists" in text(host.call("files.file_writer", again))
    assert (files / "a.txt").read_text() == "ü"
    host.call("files.file_writer", {**again, "overwrite": "true"})
    assert (files / "a.txt").read_text() == "other"
    assert "successfully" in text(
        host.call("files.file_writer", {"filename": "c.txt", "content": "y", "directory": "new/deep"})
    )
    assert (files / "new" / "deep" / "c.txt").read_text() == "y"
    host.call("files.file_writer", {"filename": "b.txt", "content": "x", "directory": ".."})
    assert not (project.folder / "b.txt").exists()


def test_directory_read(project, files, start):
    """Lists the host's folder."""
    host = start(stock(project, "DirectoryReadTool"))
    (files / "inner").mkdir()
    (files / "inner" / "deep.txt").touch()
    listed = text(host.call("files.directory_read", {"directory": "."}))
    assert str(files / "ticket.txt") in listed
    assert "inner/deep.txt" in listed
    assert "secret.txt" not in listed
    assert host.call("files.directory_read", {"directory": "/etc"}).outcome.error_class == "tool_raised"


def test_scrape_website_on_loopback_needs_its_own_guard_lifted(project, start, site, monkeypatch):
    """crewai_tools refuses private addresses unless CREWAI_TOOLS_ALLOW_UNSAFE_PATHS is set for this host."""
    host = start(stock(project, "ScrapeWebsiteTool"))
    monkeypatch.delenv("CREWAI_TOOLS_FORCE_SAFE_PATHS", raising=False)
    monkeypatch.delenv("CREWAI_TOOLS_ALLOW_UNSAFE_PATHS", raising=False)
    refused = host.call("files.scrape_website", {"website_url": site})
    assert refused.outcome.error_class == "tool_raised"
    assert "private/reserved IP" in refused.outcome.message
    monkeypatch.setenv("CREWAI_TOOLS_ALLOW_UNSAFE_PATHS", "true")
    assert "Up to 50." in text(host.call("files.scrape_website", {"website_url": site}))


def test_a_tools_own_failure_value_is_a_failure(project, start):
    """CrewAI's ToolFailure does not come back as a result."""
    name = project.write(
        """
        from crewai.tools import tool
        from crewai.tools.tool_failure import ToolFailure

        @tool
        def flaky(x: int) -> object:
            "May fail."
            return ToolFailure(message="no such order")
        """
    )
    call = start(project.load(f"{name}:flaky")).call("orders.flaky", {"x": 1})
    assert (call.state, call.outcome.error_class, call.outcome.message) == (
        "failed",
        "tool_reported",
        "no such order",
    )
