"""Two agents: one reads the tickets, one pays."""

from crewai import Agent, Crew, Process, Task
from crewai_tools import FileReadTool

from desk.tools import list_tickets, lookup_order, refund

triage = Agent(
    role="Triage Analyst",
    goal="Find out what each customer asks for",
    backstory="You read every open ticket and report each request with its order number, word for word.",
    tools=[list_tickets, FileReadTool()],
    allow_delegation=False,
)
billing = Agent(
    role="Billing Clerk",
    goal="Pay each customer back what is due",
    backstory="You look an order up before you pay, and you report every refund.",
    tools=[lookup_order, refund],
    allow_delegation=False,
)

read_tickets = Task(
    description="List the open tickets, read each of them, and report what each customer asks for.",
    expected_output="One paragraph per ticket: its path, then the customer's request.",
    agent=triage,
)
pay_refunds = Task(
    description=(
        "Carry out the refunds that the tickets ask for. Look each order up first: a full refund is "
        "the order's total. Pay each request once."
    ),
    expected_output="One line per request: the order, the amount, and what came of it.",
    agent=billing,
    context=[read_tickets],
)

crew = Crew(agents=[triage, billing], tasks=[read_tickets, pay_refunds], process=Process.sequential)
