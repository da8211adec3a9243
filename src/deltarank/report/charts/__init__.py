"""Definitions of the charts in Vega-Lite, without data."""
