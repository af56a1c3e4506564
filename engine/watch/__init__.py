"""Who follows a run: a screen, a log, figures for others, and what they are told."""
