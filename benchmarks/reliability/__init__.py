"""What is left of the work when its process dies, its disk fills or another process comes."""
