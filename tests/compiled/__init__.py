"""What `make compiled` makes: the same answers, faster."""
