"""What a run came to: its numbers, its page, its tables."""
