"""The page of a blind test, on which people vote."""
