"""Two agents and two tasks, as the CrewAI documentation writes them."""

from crewai import Agent, Crew, Task
from crewai_tools import FileReadTool

from desk.tools import list_tickets, lookup_order, refund

triage = Agent(
    role="Triage Analyst",
    goal="Find out what each ticket asks for",
    backstory="You read every ticket carefully.",
    tools=[list_tickets, FileReadTool()],
    llm="gpt-4o-mini",
)
billing = Agent(
    role="Billing Clerk",
    goal="Refund what customers are owed",
    backstory="You look an order up before you pay.",
    tools=[lookup_order, refund],
    llm="gpt-4o-mini",
)
read_tickets = Task(
    description="Read all open tickets and list what each asks for.",
    expected_output="One line per request.",
    agent=triage,
)
pay_refunds = Task(
    description="Pay every refund that the tickets ask for.",
    expected_output="One line per refund.",
    agent=billing,
    context=[read_tickets],
)
crew = Crew(agents=[triage, billing], tasks=[read_tickets, pay_refunds])
