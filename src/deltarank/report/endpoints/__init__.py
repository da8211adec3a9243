"""The page on two endpoints."""
