"""Numbers, and the commands that make them. Timings are never tests."""
