"""What outlives a restart: registrations and results, as files."""
