"""Files, and batches whose lines run in slots that no other request needs."""
