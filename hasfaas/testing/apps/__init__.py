"""Users' code that the suites call: plain modules, deployed under their own names ("verbs.add")."""
