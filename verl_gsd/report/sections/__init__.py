"""The sections of a report's page. A section is left out if no run has data for it."""
