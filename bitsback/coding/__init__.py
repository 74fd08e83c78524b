"""An entropy coder: integers become words under a distribution, and back. It knows numpy and no network."""
