"""The page as one HTML file, and its pictures."""
