"""What models learn from text: masked language modelling, UL2's denoisers."""
