"""Files, and batches whose lines run when no other request wants the slots."""
