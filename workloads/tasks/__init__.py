"""What is asked of the data, one file a task; a network inherits from exactly one of them."""
