"""A model over several processes. Model code knows nothing of it: it is applied from outside."""
