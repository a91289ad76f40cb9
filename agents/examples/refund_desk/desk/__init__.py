"""A refund desk: reads customers' tickets, looks their orders up, pays money back."""
