"""The page of a fleet as one HTML file."""
