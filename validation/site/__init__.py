"""The command line, and the pages that are made of all reports."""
