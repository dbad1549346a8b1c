"""What models and runs cost, told before anything is rented: no weights are allocated, no data is read."""
