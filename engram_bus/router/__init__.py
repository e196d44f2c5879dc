"""WHO WANTS IT: filters, the ring of recent units, and how far each subscription has read."""
