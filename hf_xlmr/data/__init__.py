"""Texts and rows out of files and data sets, with the place of each for messages."""
