"""Models and weights from elsewhere, both ways: tables of rules between their names and ours."""
