"""One file a command: parses, validates and prints; `engine.app` hangs them on the app."""
