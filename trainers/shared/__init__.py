"""The modules that several methods share."""
