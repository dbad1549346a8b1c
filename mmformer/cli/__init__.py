"""The command line: one file a command family, each imported only when it is called."""
