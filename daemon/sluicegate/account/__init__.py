"""What each request used and how it ended."""
