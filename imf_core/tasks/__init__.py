"""What a search can train: the Task protocol, link prediction, recommending, and where further tasks register."""
