"""Builds the data of a page from results: plain, labelled rows, without markup."""
