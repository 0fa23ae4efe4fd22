"""Which layer goes on which device, and loading it so."""
