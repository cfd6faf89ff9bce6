"""How a trained model is judged: finding it, what it says of each row, statistics over these, the rules it must keep."""
