"""Object stores: what a run reads from there, and how a run is kept there."""
