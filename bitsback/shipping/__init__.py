"""Objects become files, and files objects: messages and model files, from configuration to bytes and back."""
