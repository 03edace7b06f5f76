"""What people say of samplers, tested."""
