"""Using a trained model: writing, scoring, filling blanks, evaluation."""
