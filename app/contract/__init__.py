"""What clients, API and workers agree on. Imports the standard library and pydantic alone."""
