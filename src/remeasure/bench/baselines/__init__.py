"""What a user would write instead, and the machine's own limits: what `make bench` measures ours beside."""
