"""The refund desk: reads tickets, looks up orders, pays refunds."""
