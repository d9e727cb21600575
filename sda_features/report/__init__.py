"""What people read: tables of metrics."""
