"""What the demo needs around the refund desk: data by seed, a payment service, a scripted model."""
