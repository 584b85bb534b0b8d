"""CPU engines and the state that they share."""
