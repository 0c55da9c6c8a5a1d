"""To and from other libraries' models."""
