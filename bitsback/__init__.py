"""bitsback: train networks counted in bits."""
