"""Compares the learning curves of several runs."""
