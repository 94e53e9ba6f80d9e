"""The command line: shared flags, parsers, and aliases of old names."""
