"""Runs the refund desk once."""

from desk.crew import crew

if __name__ == "__main__":
    print(crew.kickoff())
