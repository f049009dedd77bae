"""Measures the machine that it runs on: every kernel class on every runtime, and the machine itself."""
