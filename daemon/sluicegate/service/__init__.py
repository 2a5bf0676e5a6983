"""What systemd and the daemon tell each other."""
