"""What can be set: read, checked, turned into values."""
