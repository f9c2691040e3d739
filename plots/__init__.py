"""The papers' figures: what the runs left behind (read), and pictures of it (draw)."""
