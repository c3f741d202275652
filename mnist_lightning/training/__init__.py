"""What makes a run survive."""
