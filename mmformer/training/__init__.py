"""Training. The only package that imports Lightning, and even here only where a run starts (see ``task``)."""
