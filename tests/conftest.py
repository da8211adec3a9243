"""This folder goes on the path of all tests, so that they share `hub.py`."""
