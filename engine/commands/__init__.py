"""One file a command: parses, validates and prints; `engine.cli` hangs them on the app."""
