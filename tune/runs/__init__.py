"""Running trials under Ray Tune, and finalising the winner."""
