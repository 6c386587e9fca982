"""The data model: named parameters with typed slots, the same for a running optimizer and for a file."""
