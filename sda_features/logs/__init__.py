"""A team's interactions: read as sparse rows, split, and paired."""
