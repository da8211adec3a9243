"""The summary of a run as text."""
