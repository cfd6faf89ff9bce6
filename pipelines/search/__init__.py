"""What a sweep is made of: where it searches, what suggests, the facts it keeps, how it is shown."""
