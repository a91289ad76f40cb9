"""The world around the refund desk example: its data by seed, a payment service, an obedient model."""
