"""Whether a machine, or several, can do what a run asks of them: looked at before hours of them are spent."""
