"""What is written to event files."""
