"""Work through the tickets in `tickets/` once and print what was done."""

from dotenv import load_dotenv

from desk.crew import crew

if __name__ == "__main__":
    load_dotenv()
    print(crew.kickoff())
