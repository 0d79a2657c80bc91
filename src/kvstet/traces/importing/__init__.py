"""Session files of coding-agent clients, and logs of others, as traces."""
