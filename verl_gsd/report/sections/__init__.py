"""The page, part by part: each is there where a run has something to show."""
