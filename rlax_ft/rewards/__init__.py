"""What a completion is worth: rules on text, and learned reward models."""
