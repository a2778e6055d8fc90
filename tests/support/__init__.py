"""What several tests need: real clusters of real processes."""
