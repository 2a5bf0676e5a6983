"""HTTP/1.1 on the hot routes: heads, connections, and their clients."""
