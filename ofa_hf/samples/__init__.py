"""Embedded sample data: the drawn shop and files of the official format."""
