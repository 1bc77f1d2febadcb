"""Plan, isolate, run, evaluate and record: the harness and the command line."""
