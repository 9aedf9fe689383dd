"""What a person types: the two scripts under src/, and what they call."""
