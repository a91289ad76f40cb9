"""Ports for what a mesh starts."""

import pytest
from meshgate_deploy import ports


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was given looks free until whoever got it listens; it is somebody's all the same."""
    monkeypatch.setattr(ports, "RANGE", range(20_000, 20_040))
    monkeypatch.setattr(ports, "TRIES", 10)
    monkeypatch.setattr(ports, "_given", set())
    given = [port for _ in range(10) for port in ports.free_ports(2)]
    assert len(set(given)) == 20


def test_a_long_life_does_not_run_out_of_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many restarts the first ones are given again."""
    monkeypatch.setattr(ports, "RANGE", range(20_000, 20_040))
    monkeypatch.setattr(ports, "TRIES", 10)
    monkeypatch.setattr(ports, "MAX_REMEMBERED", 20)
    monkeypatch.setattr(ports, "_given", set())
    assert all(len(ports.free_ports(2)) == 2 for _ in range(60))
