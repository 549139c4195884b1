"""How an input is randomised: one law a file."""
