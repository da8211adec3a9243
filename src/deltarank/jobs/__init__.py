"""One package a command: each has its options, its plan, its run and its result."""
