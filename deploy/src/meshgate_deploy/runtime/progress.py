"""How a long step tells a person that it goes on."""

from collections.abc import Callable

Progress = Callable[[str], None]  # one line, without a line end
REPORT_SECONDS = 5.0  # between two lines of one step
