"""Pictures and pages about finished runs."""
