"""What a run leaves: masks, overlays, tables."""
